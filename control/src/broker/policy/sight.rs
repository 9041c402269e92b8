//! What a user may see: one question about each resource there is, prepared once for them all.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::all_of;
use crate::broker::app::App;
use crate::broker::store::{Catalogue, Granted, Listed, Owner};
use crate::code::Fault;
use crate::policy::{Action, Circumstances, Policies, Subject};

/// Everything that has to be known to look, so that looking waits for nothing.
struct Sight {
    policies: Arc<Policies>,
    subject: Subject,
    /// But for what was granted.
    here: Circumstances,
    catalogue: Catalogue,
    granted: Granted,
}

impl App {
    /// What `show` makes of the resources that `owner` may see from `source`, and how long that took.
    ///
    /// # Errors
    /// The database's, and [`Looks::look`](crate::broker::looks::Looks::look)'s.
    pub(crate) async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        owner: &Owner,
        source: IpAddr,
        show: impl FnOnce(&Self, Vec<&Listed>) -> T + Send + 'static,
    ) -> Result<(T, Duration), Fault> {
        let (catalogue, granted) = self.store.catalogue(&owner.name).await?;
        let here = self.judge.circumstances(Some(source), false, None);
        let (policies, subject) = (self.judge.policies(), owner.subject());
        let sight = Sight { policies, subject, here, catalogue, granted };
        let (app, judgements) = (self.clone(), sight.judgements());
        self.looks.look(&owner.name, judgements, move || show(&app, sight.seen())).await
    }
}

impl Sight {
    /// Judgements of one policy about one resource, at most: what a look costs.
    fn judgements(&self) -> usize {
        self.catalogue.len().saturating_mul(self.policies.len())
    }

    fn seen(&self) -> Vec<&Listed> {
        let [without, with] = [false, true].map(|granted| {
            let here = Circumstances { granted, ..self.here.clone() };
            self.policies.asker(&self.subject, Action::See, &here)
        });
        let may_see = |listed: &&Listed| {
            let asker = if self.granted.covers(&listed.name) { &with } else { &without };
            all_of(asker, &listed.announced).allowed
        };
        self.catalogue.iter().map(Arc::as_ref).filter(may_see).collect()
    }
}
