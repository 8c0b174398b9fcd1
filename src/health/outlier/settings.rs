use super::rule::EjectionRule;

/// The settings of outlier detection that each endpoint needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndpointSettings {
    pub(super) rule: EjectionRule,
    /// 0: failures in a row do not eject.
    pub(super) consecutive_failures: u32,
    pub(super) need_tallies: bool,
    /// Whether the start time is needed, at least of some requests.
    pub(super) need_start: bool,
    /// In ns; 0: cancelled calls do not count.
    pub(super) cancelled_after: u64,
}
