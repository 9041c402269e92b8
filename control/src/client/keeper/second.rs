//! The leg through a second gateway: dialled when [`Second`](crate::client::second::Second) says so.
use switchback_shortpath::LegKind;
use tokio::time::{Instant, timeout};

use super::{Attempt, Keeper, Made, ask_ticket};
use crate::code::{Code, Fault};
use crate::dial::leg;
use crate::wire::{LegWish, Standby};

impl Keeper {
    /// Whether another gateway shall stand by: where the resource wants that, and there is something to lose.
    pub(super) fn wants_second(&self) -> bool {
        let carries = !self.legs.is_empty() && self.handle.stats().channels > 0;
        carries && self.udp.transport().standby == Standby::TwoGateways
    }

    pub(super) fn settle_second(&mut self, made: Result<Made, Fault>) {
        match made {
            // The first may have moved there meanwhile, or be lost.
            Ok(Made { via, .. }) if self.legs.is_empty() || via == self.moving.via => {
                self.second.failed(Instant::now());
            }
            Ok(Made { stream, via, .. }) => {
                let leg = self.handle.attach(stream, LegKind::TcpReverse);
                tracing::debug!(session = %self.id, %leg, via, "second gateway stands by");
                self.second.attached(leg, via);
            }
            Err(fault) => {
                tracing::debug!(session = %self.id, code = %fault.code, detail = fault.detail, "no second gateway");
                self.second.failed(Instant::now());
            }
        }
    }

    pub(super) fn attempt_second(&self) -> Attempt {
        let (desk, grant, tls) = (self.desk.clone(), self.grant.clone(), self.tls.clone());
        let (udp, not_via) = (self.udp.clone(), Some(self.moving.via.clone()));
        let wish = LegWish { not_via, instead: false, second: true };
        Box::pin(async move {
            let connecting = async {
                let (ticket, _) = ask_ticket(&desk, grant, udp, wish).await?;
                let stream = leg::connect(&ticket, desk.home(), tls, None).await?;
                Ok(Made { stream, via: ticket.gateway.unwrap_or_default(), instead: false })
            };
            let late = |_| Err(Code::LegFailed.because("the leg was not up in time"));
            timeout(leg::RESUME_LEG_TIMEOUT, connecting).await.unwrap_or_else(late)
        })
    }
}
