use std::sync::Arc;

use tokio::sync::Notify;
use tower::discover::Change;
use tracing::info;

use crate::{
    endpoint::{Address, Endpoint, EndpointMap},
    guard::{drop_each_guarded, drop_guarded},
};

/// The members that discovery has named, in the order of joining.
pub(super) struct Members<A, S> {
    map: EndpointMap<A, S>,
    /// The members that have left since the last publication.
    departed: Vec<(u64, Endpoint<A>)>,
}

impl<A: Address, S> Members<A, S> {
    /// Applies a change. From now on, the endpoint notifies `driver` of its own changes.
    pub(super) fn apply(&mut self, change: Change<Endpoint<A>, S>, driver: &Arc<Notify>) {
        let removed = match change {
            Change::Insert(endpoint, service) => {
                endpoint.attach(driver);
                let (_, replaced) = self.map.insert(endpoint.clone(), service);
                match &replaced {
                    Some(_) => info!(%endpoint, "endpoint's service replaced"),
                    None => info!(%endpoint, "endpoint joined"),
                }
                replaced
            }
            Change::Remove(endpoint) => {
                let removed = self.map.remove(&endpoint);
                if removed.is_some() {
                    info!(%endpoint, "endpoint left");
                }
                removed
            }
        };
        if let Some((id, endpoint, service)) = removed {
            self.departed.push((id, endpoint));
            drop_guarded(service);
        }
    }
}

impl<A, S> Members<A, S> {
    pub(super) fn get(&self, id: u64) -> Option<(&Endpoint<A>, &S)> {
        self.map.get(id)
    }

    /// Iterates over ids, endpoints and services, in the order of joining.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Endpoint<A>, &S)> {
        self.map.iter()
    }

    /// Returns the members that have left since the previous call.
    pub(super) fn take_departed(&mut self) -> Vec<(u64, Endpoint<A>)> {
        std::mem::take(&mut self.departed)
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// Services are foreign code, and so is their drop.
impl<A, S> Drop for Members<A, S> {
    fn drop(&mut self) {
        drop_each_guarded(self.map.take_values());
    }
}

impl<A, S> Default for Members<A, S> {
    fn default() -> Self {
        Self {
            map: EndpointMap::default(),
            departed: Vec::new(),
        }
    }
}
