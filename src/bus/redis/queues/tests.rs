use futures_util::FutureExt;
use redis::Value;

use super::*;

fn identity(key: u8) -> ClusterIdentity {
    ClusterIdentity::new([key; 32], [key; 16])
}

fn open() -> Outbox {
    let outbox = Outbox::default();
    outbox.identify(identity(1));
    outbox.open(&identity(1));
    outbox
}

fn put(outbox: &Outbox, bytes: usize) -> bool {
    outbox.put(|| (String::new(), vec![0; bytes])).is_ok()
}

#[test]
fn the_outbox_is_bounded_in_number_and_size() {
    let outbox = open();
    assert_eq!((0..10_000).filter(|_| put(&outbox, 1)).count(), MAX_ENVELOPES);
    let outbox = open();
    assert!(!put(&outbox, MAX_ENVELOPE_BYTES + 1));
    assert_eq!(
        (0..10).filter(|_| put(&outbox, MAX_ENVELOPE_BYTES)).count(),
        MAX_OUTBOX_BYTES / MAX_ENVELOPE_BYTES
    );
    assert!(put(&open(), MAX_ENVELOPE_BYTES));
}

#[test]
fn nothing_is_encoded_for_a_bus_that_is_down() {
    let outbox = open();
    put(&outbox, 1);
    outbox.close();
    assert_eq!(outbox.put(|| unreachable!()), Err(NotSent));
    outbox.request(Channel::Nodes, true);
    outbox.open(&identity(1));
    assert!(outbox.lock().take_envelopes().is_empty());
    assert!(outbox.lock().take_channels().is_empty());
}

#[test]
fn what_is_queued_under_another_identity_is_dropped() {
    let outbox = open();
    outbox.identify(identity(1));
    assert!(put(&outbox, 1), "the same one changes nothing");
    outbox.request(Channel::Nodes, true);
    outbox.identify(identity(2));
    assert!(!put(&outbox, 1));
    outbox.open(&identity(1));
    assert!(!put(&outbox, 1), "that was about the one before");
    outbox.open(&identity(2));
    assert!(outbox.lock().take_envelopes().is_empty());
    assert!(outbox.lock().take_channels().is_empty());
    let found = outbox.identity(Some(&identity(1))).now_or_never();
    assert_eq!(found.as_deref(), Some(&identity(2)));
    assert!(outbox.identity(Some(&identity(2))).now_or_never().is_none());
    outbox.close();
    assert!(outbox.identity(None).now_or_never().is_some());
}

#[test]
fn batches_are_in_order_and_bounded() {
    let outbox = open();
    for bytes in [MAX_BATCH_BYTES + 1, 1, MAX_BATCH_BYTES, 1] {
        assert!(put(&outbox, bytes));
    }
    let mut batches = (0..4).map(|_| outbox.lock().take_envelopes().len());
    assert_eq!(batches.by_ref().collect::<Vec<_>>(), [1, 1, 1, 1]);
    (0..MAX_BATCH_ENVELOPES + 1).for_each(|_| assert!(put(&outbox, 1)));
    assert_eq!(outbox.lock().take_envelopes().len(), MAX_BATCH_ENVELOPES);
    assert_eq!(outbox.lock().take_envelopes().len(), 1);
    assert_eq!(outbox.lock().bytes, 0);
}

#[test]
fn the_last_request_for_a_channel_counts() {
    let outbox = open();
    for subscribe in [true, false, true, false] {
        outbox.request(Channel::Nodes, subscribe);
    }
    assert_eq!(outbox.lock().take_channels(), [(Channel::Nodes, false)]);
    assert!(outbox.lock().take_channels().is_empty());
}

fn message(bytes: usize) -> Msg {
    let words = [b"message".to_vec(), b"channel".to_vec(), vec![0; bytes]];
    let value = Value::Array(words.into_iter().map(Value::BulkString).collect());
    Msg::from_owned_value(value).unwrap()
}

fn take(inbox: &Inbox) -> Option<&'static str> {
    inbox.next().now_or_never().map(|event| match event {
        QueuedEvent::Up => "up",
        QueuedEvent::Down(reason) => reason,
        QueuedEvent::Subscribed(_) => "subscribed",
        QueuedEvent::Message(_) => "message",
    })
}

#[test]
fn down_is_reported_at_once_and_again_for_another_reason() {
    let inbox = Inbox::default();
    inbox.down("refused");
    inbox.down("timeout");
    assert_eq!((take(&inbox), take(&inbox)), (Some("timeout"), None));
    inbox.down("timeout");
    assert_eq!(take(&inbox), None);
    inbox.down("denied");
    assert_eq!((take(&inbox), take(&inbox)), (Some("denied"), None));

    inbox.up();
    assert_eq!(take(&inbox), Some("up"));
    inbox.subscribed(Channel::Nodes);
    inbox.message(message(1)).unwrap();
    inbox.down("lost");
    inbox.up();
    assert_eq!([(); 3].map(|()| take(&inbox)), [Some("lost"), Some("up"), None]);
}

#[test]
fn an_unreported_up_is_withdrawn() {
    let inbox = Inbox::default();
    inbox.down("lost");
    take(&inbox);
    inbox.up();
    inbox.down("lost");
    assert_eq!(take(&inbox), None);
}

#[test]
fn the_inbox_is_bounded_in_number_and_size() {
    let inbox = Inbox::default();
    assert_eq!(
        (0..100_000).take_while(|_| inbox.message(message(1)).is_ok()).count(),
        MAX_MESSAGES
    );
    let inbox = Inbox::default();
    inbox.message(message(MAX_INBOX_BYTES)).unwrap();
    assert!(inbox.message(message(1)).is_err());
    // A single message is accepted whatever its size.
    let inbox = Inbox::default();
    inbox.message(message(MAX_INBOX_BYTES + 1)).unwrap();
    assert_eq!(take(&inbox), Some("message"));
    inbox.message(message(MAX_INBOX_BYTES)).unwrap();
}
