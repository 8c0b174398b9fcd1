/// Selects which of a backend's addresses are used: IPv4, IPv6 or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressFamily {
    /// All addresses. A backend that has one of each family is two endpoints.
    #[default]
    Both,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// IPv4, or IPv6 where there is no IPv4 address.
    PreferV4,
    /// IPv6, or IPv4 where there is no IPv6 address.
    PreferV6,
}

impl AddressFamily {
    /// Returns those that are used.
    pub(super) fn choose<T>(self, v4: Vec<T>, v6: Vec<T>) -> Vec<T> {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
            Self::PreferV4 if !v4.is_empty() => v4,
            Self::PreferV6 if v6.is_empty() => v4,
            Self::PreferV4 | Self::PreferV6 => v6,
            Self::Both => v4.into_iter().chain(v6).collect(),
        }
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_preferred_family_is_used_where_it_exists() {
        use AddressFamily::*;
        for (family, both, only_v4, only_v6) in [
            (Both, vec![4, 6], vec![4], vec![6]),
            (V4, vec![4], vec![4], vec![]),
            (V6, vec![6], vec![], vec![6]),
            (PreferV4, vec![4], vec![4], vec![6]),
            (PreferV6, vec![6], vec![4], vec![6]),
        ] {
            assert_eq!(family.choose(vec![4], vec![6]), both, "{family:?}");
            assert_eq!(family.choose(vec![4], vec![]), only_v4, "{family:?}");
            assert_eq!(family.choose(vec![], vec![6]), only_v6, "{family:?}");
        }
    }
}
