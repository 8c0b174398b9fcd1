use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
};

use super::{Address, Endpoint};

/// Keeps a value for each endpoint, under a number that is never used twice.
///
/// Inserting an equal endpoint replaces the earlier one and gets a new number. A lookup by the old
/// number then finds nothing.
pub(crate) struct EndpointMap<A, T> {
    /// In the order of joining.
    by_id: BTreeMap<u64, (Endpoint<A>, T)>,
    ids: HashMap<Endpoint<A>, u64>,
    next_id: u64,
}

/// An endpoint that was removed from the map: its number, its handle and its value.
pub(crate) type Removed<A, T> = (u64, Endpoint<A>, T);

impl<A: Address, T> EndpointMap<A, T> {
    /// Adds an endpoint; returns its number and the endpoint that it replaces. **O(log n)**.
    pub(crate) fn insert(
        &mut self,
        endpoint: Endpoint<A>,
        value: T,
    ) -> (u64, Option<Removed<A, T>>) {
        // Removed first, because an insertion alone would keep the old handle as the key.
        let replaced = self.remove(&endpoint);
        let id = self.next_id;
        self.next_id += 1;
        self.ids.insert(endpoint.clone(), id);
        self.by_id.insert(id, (endpoint, value));
        (id, replaced)
    }

    /// Takes an endpoint out. **O(log n)**.
    pub(crate) fn remove(&mut self, endpoint: &Endpoint<A>) -> Option<Removed<A, T>> {
        let id = self.ids.remove(endpoint)?;
        let (endpoint, value) = self.by_id.remove(&id)?;
        Some((id, endpoint, value))
    }

    /// Takes out the endpoint that joined first. **O(log n)**.
    pub(crate) fn remove_oldest(&mut self) -> Option<Removed<A, T>> {
        let (id, (endpoint, value)) = self.by_id.pop_first()?;
        self.ids.remove(&endpoint);
        Some((id, endpoint, value))
    }

    /// Returns the number of an endpoint, by its handle or its address. **O(1)**.
    pub(crate) fn id<Q>(&self, endpoint: &Q) -> Option<u64>
    where
        Endpoint<A>: Borrow<Q>,
        Q: Eq + std::hash::Hash + ?Sized,
    {
        self.ids.get(endpoint).copied()
    }
}

impl<A, T> EndpointMap<A, T> {
    pub(crate) fn get(&self, id: u64) -> Option<(&Endpoint<A>, &T)> {
        self.by_id
            .get(&id)
            .map(|(endpoint, value)| (endpoint, value))
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<(&Endpoint<A>, &mut T)> {
        let (endpoint, value) = self.by_id.get_mut(&id)?;
        Some((&*endpoint, value))
    }

    /// Iterates over numbers, endpoints and values, in the order of joining.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Endpoint<A>, &T)> {
        let entries = self.by_id.iter();
        entries.map(|(id, (endpoint, value))| (*id, endpoint, value))
    }

    /// Takes out everything.
    pub(crate) fn take_values(&mut self) -> impl Iterator<Item = T> + use<A, T> {
        self.ids = HashMap::new();
        let all = std::mem::take(&mut self.by_id);
        all.into_values().map(|(_, value)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

// Not derived, because that would require `A: Default` and `T: Default`.
impl<A, T> Default for EndpointMap<A, T> {
    fn default() -> Self {
        Self {
            by_id: BTreeMap::new(),
            ids: HashMap::new(),
            next_id: 0,
        }
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_endpoint_is_known_by_the_new_handle_and_number() {
        let mut map = EndpointMap::default();
        let (old, new) = (Endpoint::new("a"), Endpoint::new(("a", 9)));
        let (first, none) = map.insert(old, 1);
        assert!(none.is_none());
        let (second, replaced) = map.insert(new, 2);
        assert_eq!(replaced.map(|(id, _, value)| (id, value)), Some((first, 1)));
        assert!(map.get(first).is_none());
        assert_eq!(
            map.get(second).map(|(endpoint, _)| endpoint.weight()),
            Some(9)
        );
        assert_eq!((map.id(&"a"), map.len()), (Some(second), 1));
        assert!(map.remove(&Endpoint::new("a")).is_some() && map.is_empty());
        assert_eq!(map.id(&"a"), None);
    }
}
