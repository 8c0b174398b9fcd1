use tokio::time::Instant;

use super::{Candidates, PickContext, Rebuild};

/// Chooses one member for one request.
///
/// All handles of a balancer share one policy, and so everything that it counts. Its methods must
/// not block.
///
/// # Policies that call other policies
///
/// [`Candidates::only`] narrows what another policy sees. Hand on [`seed`](Self::seed),
/// [`hash_of`](Self::hash_of), [`refresh_at`](Self::refresh_at) and [`attach`](Self::attach) too if
/// the other policy may use them. Do not hand on [`any_will_do`](Self::any_will_do): it would reach
/// members outside the mask. Here, requests stay in one zone:
///
/// ```
/// use tower_lb::{Candidates, Choice, PickContext, Policy, policy::Mask};
///
/// #[derive(Clone, Debug)]
/// struct InZone<P>(&'static str, P);
///
/// impl<A: 'static, S, Req, P: Policy<A, S, Req>> Policy<A, S, Req> for InZone<P> {
///     type Table = (Mask, P::Table);
///
///     fn table(&self, all: Candidates<'_, A, S>, previous: Option<&Self::Table>) -> Self::Table {
///         let members = all.members().iter().enumerate();
///         let here = members.filter(|(_, member)| member.endpoint().zone().as_deref() == Some(self.0));
///         let mask: Mask = here.map(|(position, _)| position).collect();
///         let table = self.1.table(all.only(&mask), previous.map(|(_, table)| table));
///         (mask, table)
///     }
///
///     fn pick(&self, (mask, table): &Self::Table, all: Candidates<'_, A, S>, cx: &mut PickContext<'_, Req>) -> Choice {
///         self.1.pick(table, all.as_built(mask), cx)
///     }
/// }
///
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::{BalanceLayer, Endpoint, P2c, PendingRequestsLayer, Target, each, fixed};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(InZone("eu-1a", P2c::default())))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(fixed([Target::new("near").zone("eu-1a"), Target::new("far").zone("us-2b")]))
///     .service(|endpoint: &Endpoint<&'static str>| {
///         let name = *endpoint.address();
///         service_fn(move |()| async move { Ok::<_, std::io::Error>(name) })
///     });
/// assert_eq!(client.oneshot(()).await?, "near");
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't choose among these members for this request",
    label = "this is no policy for these services, or the services miss what it reads",
    note = "`P2c` and `LeastLoaded` read a load: put `each(PendingRequestsLayer::default())` or another tracker right below the balancer",
    note = "a factory that returns a `Result` goes below `fallible()`",
    note = "a hash policy's key must be one for this request: `RingHash::by(|request: &Request| ..)`",
    note = "`bounded` reads a total: `each(PendingRequestsLayer::default().with_total())`"
)]
pub trait Policy<A, S, Req>: Send + Sync + 'static {
    /// The table that is built once for each snapshot: a ring, a schedule, an alias table.
    ///
    /// Use `()` if the policy needs none.
    type Table: Send + Sync + 'static;

    /// Builds the table for a snapshot, of which the `candidates` may be picked.
    ///
    /// Runs on the driver's task, off the request path. `previous` is the table that the new one
    /// replaces.
    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        previous: Option<&Self::Table>,
    ) -> Self::Table;

    /// Chooses one of the `candidates`, which are members of the snapshot that `table` was built
    /// for.
    ///
    /// Called again with fewer candidates if the chosen member is not ready. A choice that is not a
    /// candidate fails the call with [`NotChosen`](crate::error::NotChosen).
    fn pick(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice;

    /// Returns whether any candidate will do after 16 chosen members were not ready.
    ///
    /// If so, one look over all candidates finds a ready one, without a pick for each, and a caller
    /// that waits goes to any member that joins. Default: no, and every member that is called was
    /// chosen by [`pick`](Self::pick). While a caller waits, it is then asked for up to 16 choices
    /// after each change of the set.
    fn any_will_do(&self) -> bool {
        false
    }

    /// Returns the next `most` picks in their order, if that is cheaper than to pick one by one.
    ///
    /// Called when a member that was picked is not ready. Fewer than `most` mean that no other
    /// member suits. Default: `None`, and [`pick`](Self::pick) is called for each.
    fn pick_several(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
        most: usize,
    ) -> Option<Vec<usize>> {
        let _ = (table, candidates, cx, most);
        None
    }

    /// Returns the hash that the request is placed by, for a policy that wraps this one.
    ///
    /// Default: `None`. Also `None` while the request is not known, or if it has no key.
    fn hash_of(&self, cx: &mut PickContext<'_, Req>) -> Option<u64> {
        let _ = cx;
        None
    }

    /// Returns when the table is to be built again though the set has not changed. Default never.
    ///
    /// Asked after each build. A moment that has passed, or comes within a millisecond, counts as a
    /// millisecond from now.
    fn refresh_at(&self, table: &Self::Table) -> Option<Instant> {
        let _ = table;
        None
    }

    /// Passes the policy a [`Rebuild`], which makes the driver build the table again at once.
    ///
    /// Called once for each balancer.
    fn attach(&self, rebuild: Rebuild) {
        let _ = rebuild;
    }

    /// Returns the seed of the random streams of the balancer's handles.
    ///
    /// Default: none, and the streams are unpredictable.
    fn seed(&self) -> Option<u64> {
        None
    }
}

/// Tells the balancer what a pick has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// The member at this position of the snapshot. If it is not ready, another pick follows.
    Member(usize),
    /// The member at this position and no other. If it is not ready, the call waits for it.
    Exactly(usize),
    /// The member at this position, even if it is draining.
    ///
    /// It is for requests that belong to it, such as those of a session. Without this, a draining
    /// member gets no request. [`Candidates::is_draining`] tells whether it may be chosen so.
    EvenDraining(usize),
    /// The policy needs the request, which is known only in `call`. It is asked again there.
    NeedsRequest,
    /// The request has no key; the call fails with [`MissingKey`](crate::error::MissingKey).
    MissingKey,
    /// None of the candidates suits. The call fails with [`NotChosen`](crate::error::NotChosen).
    ///
    /// If members that were chosen before are not ready, the call waits for one of them instead.
    Nobody,
}
