use crate::member::Member;

/// The members that became candidates not long ago, for callers that wait.
///
/// A caller that has looked at all members needs to look only at these after a publication.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    /// The version from which on the list is complete.
    since: u64,
    /// Versions, and the ids of the members that became candidates in them. The oldest first.
    list: Vec<(u64, u64)>,
}

impl Arrivals {
    /// Adds the candidates of `members`, in `version`, that were none in `previous`. **O(n)**.
    pub(super) fn followed_by<A, S>(
        &self,
        version: u64,
        previous: &[Member<A, S>],
        members: &[Member<A, S>],
    ) -> Self {
        // Both are in the order of their ids.
        let mut previous = previous.iter().peekable();
        let mut is_new = |member: &&Member<A, S>| {
            while previous.next_if(|other| other.id < member.id).is_some() {}
            let before = previous.next_if(|other| other.id == member.id);
            member.candidate && !before.is_some_and(|before| before.candidate)
        };
        let new = members.iter().filter(&mut is_new);
        let mut list = self.list.clone();
        list.extend(new.map(|member| (version, member.id)));
        let mut since = self.since;
        if list.len() > REMEMBERED {
            let surplus = list.len() - REMEMBERED;
            since = list[surplus - 1].0;
            list.retain(|&(version, _)| version > since);
        }
        Self { since, list }
    }

    /// Returns the ids of the members that became candidates after `version`; `None` if so many
    /// have that all members are to be looked at.
    pub(super) fn after(&self, version: u64) -> Option<impl Iterator<Item = u64> + Clone> {
        let start = self.list.partition_point(|&(other, _)| other <= version);
        (version >= self.since).then(|| self.list[start..].iter().map(|&(_, id)| id))
    }
}

/// When more members than this arrive, to look at all is not much more.
const REMEMBERED: usize = 256;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    fn members(ids: impl IntoIterator<Item = (u64, bool)>) -> Vec<Member<u64, ()>> {
        let member = |(id, candidate)| Member {
            endpoint: Endpoint::new(crate::endpoint::Target::new(id)),
            service: (),
            id,
            weight: 1,
            share: 1,
            available: candidate,
            drains: false,
            unknown: false,
            candidate,
        };
        ids.into_iter().map(member).collect()
    }

    fn after(arrivals: &Arrivals, version: u64) -> Option<Vec<u64>> {
        arrivals.after(version).map(Iterator::collect)
    }

    #[test]
    fn who_joins_and_who_comes_back_arrives() {
        let (up, out) = (true, false);
        let lists = [
            members([]),
            members([(1, up), (2, out), (3, up)]),
            members([(1, up), (2, up), (3, out)]),
            members([(2, up), (3, up), (4, up), (5, out)]),
        ];
        let mut arrivals = Arrivals::default();
        for version in 1..4 {
            let (before, now) = (&lists[version - 1], &lists[version]);
            arrivals = arrivals.followed_by(version as u64, before, now);
        }
        assert_eq!(after(&arrivals, 0), Some(vec![1, 3, 2, 3, 4]));
        assert_eq!(after(&arrivals, 2), Some(vec![3, 4]));
        assert_eq!(after(&arrivals, 3), Some(vec![]));
    }

    #[test]
    fn only_the_last_are_remembered() {
        let mut arrivals = Arrivals::default();
        let mut before = members([]);
        for version in 1..=300 {
            let now = members((1..=version).map(|id| (id, true)));
            arrivals = arrivals.followed_by(version, &before, &now);
            before = now;
        }
        assert_eq!(after(&arrivals, 43), None);
        assert_eq!(after(&arrivals, 44).unwrap().len(), 256);
        // A set that is replaced as a whole.
        let all = members((1000..2000).map(|id| (id, true)));
        arrivals = arrivals.followed_by(301, &before, &all);
        assert_eq!(after(&arrivals, 300), None);
        assert_eq!(after(&arrivals, 301), Some(vec![]));
    }
}
