//! "Read your files anew": one call for everybody who keeps some, on SIGHUP.
use tokio::sync::watch;

/// Who asks, and how often they have.
#[derive(Debug)]
pub(crate) struct Reload(watch::Sender<u64>);

/// Someone who keeps files.
#[derive(Debug)]
pub(crate) struct Asked(watch::Receiver<u64>);

impl Default for Reload {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Reload {
    /// Asks everyone to read their files anew.
    pub(crate) fn ask(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Hears of what is asked from now on.
    pub(crate) fn subscribe(&self) -> Asked {
        Asked(self.0.subscribe())
    }
}

impl Asked {
    /// Waits until it is asked; for ever, once nobody is left who could. Safe to drop and call again.
    pub(crate) async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everyone_is_asked_and_asking_twice_at_once_is_asking_once() {
        let reload = Reload::default();
        let (mut first, mut second) = (reload.subscribe(), reload.subscribe());
        reload.ask();
        reload.ask();
        first.wait().await;
        second.wait().await;
        let again = tokio::time::timeout(std::time::Duration::from_millis(5), first.wait()).await;
        assert!(again.is_err());
        let mut late = reload.subscribe();
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(5), late.wait()).await.is_err()
        );
    }
}
