//! The agent's end of a watch: what its tee shows goes out, what the watcher injects goes in.
use std::sync::Arc;

use bytes::BytesMut;
use switchback_shortpath::{Channel, ChannelReader, ChannelWriter, Tap};
use tokio::time::sleep;

use super::frame::{Decoder, Frame, Hello};
use super::tee::{Tee, Watching};
use crate::code::Code;
use crate::reason;

/// Serves one channel of a watch until the watched session or the watch is over, no faster than `pace` lets the watch go.
pub(crate) async fn serve(mut channel: Channel, tee: Arc<Tee>, hello: Hello, pace: impl Tap) {
    let Some(watching) = tee.watch() else {
        return channel.reset(reason::to_wire(Code::ChannelLimit));
    };
    let control = hello.control;
    let (reader, mut writer) = channel.split();
    tokio::select! {
        () = show(&watching, hello, &mut writer, &pace) => {
            writer.finish();
            // The watcher that does not take the last word has left.
            let _ = writer.delivered().await;
        }
        () = obey(reader, &tee, control, &pace) => writer.reset(reason::to_wire(Code::AdminOnly)),
    }
}

/// Until the last frame is written, or the watch is over. What passes while the watch has to wait is kept or counted by its
/// queue, as for a watcher that takes it slowly.
async fn show(watching: &Watching, hello: Hello, writer: &mut ChannelWriter, pace: &impl Tap) {
    let mut out = BytesMut::new();
    Frame::Hello(Box::new(hello)).encode(&mut out);
    loop {
        let bytes = out.split().freeze();
        let wait = pace.pace_inward(bytes.len());
        if writer.write(bytes).await.is_err() {
            return;
        }
        if let Some(wait) = wait {
            tokio::select! {
                () = sleep(wait) => {}
                _ = writer.failed() => return,
            }
        }
        let Some(frame) = watching.feed.next().await else { return };
        frame.encode(&mut out);
    }
}

/// Until the watcher says what it may not, or is gone.
async fn obey(mut reader: ChannelReader, tee: &Tee, control: bool, pace: &impl Tap) {
    let mut decoder = Decoder::default();
    while let Ok(Some(bytes)) = reader.read().await {
        if let Some(wait) = pace.pace_outward(bytes.len()) {
            sleep(wait).await;
        }
        decoder.push(&bytes);
        loop {
            match decoder.next_frame() {
                Ok(None) => break,
                // One for a channel that has closed meanwhile comes to nothing.
                Ok(Some(Frame::Inject { channel, bytes })) if control => {
                    tee.inject(channel, bytes).await;
                }
                Ok(Some(_)) | Err(_) => return,
            }
        }
    }
    // A watcher that only listens may have finished its own direction.
    if reader.read().await.is_ok() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::time::timeout;

    use super::*;
    use crate::shadow::Budget;
    use crate::shadow::frame::VERSION;
    use crate::test_channel::TestChannel;
    use crate::wire::{ResourceKind, SessionId};

    /// Nothing may follow the first write for an hour.
    struct OneWrite;

    impl Tap for OneWrite {
        fn pace_inward(&self, _bytes: usize) -> Option<Duration> {
            Some(Duration::from_secs(3600))
        }
    }

    fn hello() -> Hello {
        Hello {
            version: VERSION,
            session: SessionId("s".into()),
            user: "ada".into(),
            resource: "ssh".into(),
            kind: ResourceKind::Tcp,
            port: 22,
            since_us: 0,
            control: false,
        }
    }

    /// How many frames a watcher of a session with some backlog gets.
    async fn shown(pace: impl Tap + Send + 'static) -> usize {
        // The first byte of a frame.
        let mut channel = TestChannel::open(&[0]).await;
        let tee = Tee::new(Budget::new(1024, 1 << 20));
        let tap = tee.tap();
        tap.inward(&Bytes::from_static(b"backlog"));
        let serving = tokio::spawn(serve(channel.theirs, tee.clone(), hello(), pace));
        let (mut decoder, mut frames) = (Decoder::default(), 0);
        while let Ok(Ok(Some(bytes))) =
            timeout(Duration::from_millis(300), channel.ours.read()).await
        {
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {
                frames += 1;
            }
        }
        serving.abort();
        frames
    }

    #[tokio::test]
    async fn a_watch_goes_no_faster_than_its_policy_lets_it() {
        assert_eq!(shown(()).await, 3, "hello, opened, data");
        assert_eq!(shown(OneWrite).await, 1, "the rest waits");
    }
}
