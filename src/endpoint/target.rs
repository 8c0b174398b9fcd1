use std::{fmt, hash::Hash, net::SocketAddr, sync::Arc};

/// Names a backend: anything that can be compared, hashed and printed.
///
/// Every such type implements it; you need not.
pub trait Address: Eq + Hash + fmt::Display + Send + Sync + 'static {}

impl<A: Eq + Hash + fmt::Display + Send + Sync + 'static> Address for A {}

/// Describes one backend, as discovery lists it.
///
/// ```
/// use tower_lb::Target;
///
/// let target = Target::new("10.0.0.7:80").weight(3).zone("eu-1a").priority(1);
/// assert_eq!(target.weight, 3);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Target<A = SocketAddr> {
    /// Where the backend is. Two targets with the same address are the same backend.
    pub address: A,
    /// Its share of the traffic relative to the others. Default 1; 0 drains: no new requests.
    pub weight: u32,
    /// The failure domain that the backend runs in. Default none.
    pub zone: Option<Arc<str>>,
    /// The priority, for policies of your own; lower values are preferred. Default 0.
    pub priority: u16,
    /// The name of the backend in consistent hashing. Default: its address as text.
    pub hash_key: Option<Arc<str>>,
}

impl<A> Target<A> {
    /// Creates a target with weight 1, no zone and priority 0.
    #[must_use]
    pub const fn new(address: A) -> Self {
        Self {
            address,
            weight: 1,
            zone: None,
            priority: 0,
            hash_key: None,
        }
    }

    /// Sets the share of the traffic relative to the others; 0 drains the backend.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the failure domain that the backend runs in.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the priority; lower values are preferred.
    #[must_use]
    pub fn priority(mut self, priority: u16) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the backend's name in consistent hashing, in place of its address as text.
    ///
    /// A name that outlives the address, such as that of a stateful set's pod, keeps its keys when
    /// the backend moves. If several backends have the same name, one of them gets all the keys:
    /// the available one with the lowest address.
    #[must_use]
    pub fn hash_key(mut self, hash_key: impl Into<Arc<str>>) -> Self {
        self.hash_key = Some(hash_key.into());
        self
    }
}

/// Converts an entry of a discovery source into a [`Target`].
///
/// Implement it for the type that your registry client returns. A `watch::Receiver<Vec<YourType>>`
/// then feeds a balancer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be turned into a target",
    label = "not an address or a target",
    note = "list `SocketAddr`s, names, `(address, weight)` pairs or `Target`s, or implement `IntoTarget` for your type"
)]
pub trait IntoTarget {
    /// The type of the address, which names the backend.
    type Address;

    /// Converts into the target.
    fn into_target(self) -> Target<Self::Address>;
}

impl<A> IntoTarget for Target<A> {
    type Address = A;

    fn into_target(self) -> Self {
        self
    }
}

impl<A> IntoTarget for (A, u32) {
    type Address = A;

    /// The second field is the weight.
    fn into_target(self) -> Target<A> {
        Target::new(self.0).weight(self.1)
    }
}

macro_rules! addresses {
    ($($address:ty),*) => {$(
        impl IntoTarget for $address {
            type Address = Self;

            fn into_target(self) -> Target<Self> {
                Target::new(self)
            }
        }
    )*};
}

addresses!(SocketAddr, String, &'static str, Arc<str>, usize);
