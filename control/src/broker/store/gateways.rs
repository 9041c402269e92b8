//! Gateways that drain until someone says otherwise.
use super::Store;
use crate::code::Fault;

impl Store {
    /// Whether the gateway of this name is to get no legs.
    pub(crate) async fn is_gateway_draining(&self, gateway: &str) -> Result<bool, Fault> {
        let gateway = gateway.to_owned();
        self.call(move |db| {
            let sql = "SELECT 1 FROM drained_gateways WHERE name = ?1";
            db.prepare_cached(sql)?.exists([gateway])
        })
        .await
    }

    /// Has a gateway get no legs until it is told otherwise, over restarts of either; whether that is new.
    pub(crate) async fn drain_gateway(&self, gateway: &str, drain: bool) -> Result<bool, Fault> {
        let gateway = gateway.to_owned();
        self.call(move |db| {
            let sql = if drain {
                "INSERT OR IGNORE INTO drained_gateways (name) VALUES (?1)"
            } else {
                "DELETE FROM drained_gateways WHERE name = ?1"
            };
            Ok(db.prepare_cached(sql)?.execute([gateway])? > 0)
        })
        .await
    }
}
