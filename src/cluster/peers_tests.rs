use super::*;

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn row(name: &str, incarnation: Epoch) -> NodeRow {
    let (node, head, expired, leaving) = (node(name), 0, false, false);
    NodeRow { node, incarnation, head, expired, leaving }
}

const LEASE: Duration = Duration::from_secs(15);

fn at(secs: u64) -> Moment {
    Moment { monotonic: secs * 1_000_000, wall: 0 }
}

fn peers() -> Peers {
    Peers::new(node("me"))
}

/// What a survey finds, without what is only to be reported.
fn survey(peers: &mut Peers, rows: &[NodeRow]) -> Vec<NodeEvent> {
    let news = |event: &NodeEvent| {
        matches!(event, NodeEvent::Joined { .. } | NodeEvent::Left { .. } | NodeEvent::Died { .. })
    };
    peers.survey(rows).into_iter().filter(|event| !news(event)).collect()
}

/// What is to be reported of the node `n` after a survey: `+` it is there, `!` again, `-` it has left,
/// `x` it has died.
fn news(events: &[NodeEvent]) -> String {
    let n = node("n");
    let sign = |event: &NodeEvent| match event {
        NodeEvent::Joined { node, again } if *node == n => Some(if *again { '!' } else { '+' }),
        NodeEvent::Left { node } if *node == n => Some('-'),
        NodeEvent::Died { node } if *node == n => Some('x'),
        _ => None,
    };
    events.iter().filter_map(sign).collect()
}

#[test]
fn which_of_two_lives_is_the_later_one_only_the_database_knows() {
    let (mut peers, [old, new]) = (peers(), [Epoch::new(), Epoch::new()]);
    assert_eq!(peers.status_of(&node("n"), new), SenderStatus::New);
    assert_eq!(
        peers.status_of(&node("n"), old),
        SenderStatus::Unconfirmed,
        "something late, or a new life"
    );
    peers.ask();
    assert_eq!(survey(&mut peers, &[row("n", new)]), []);
    assert_eq!(peers.status_of(&node("n"), old), SenderStatus::Ended);

    let later = Epoch::new();
    assert_eq!(peers.status_of(&node("n"), later), SenderStatus::Unconfirmed);
    assert_eq!(survey(&mut peers, &[row("n", later)]), [NodeEvent::Restarted]);
    assert_eq!(peers.status_of(&node("n"), new), SenderStatus::Ended);
    assert_eq!(peers.status_of(&node("n"), later), SenderStatus::Known);
}

#[test]
fn a_life_that_was_heard_of_during_a_survey_is_not_judged_by_it() {
    let (mut peers, [first, second]) = (peers(), [Epoch::new(), Epoch::new()]);
    peers.status_of(&node("n"), first);
    peers.ask();
    assert_eq!(peers.status_of(&node("n"), second), SenderStatus::Unconfirmed);
    assert_eq!(survey(&mut peers, &[row("n", first)]), []);
    assert_eq!(peers.status_of(&node("n"), second), SenderStatus::Unconfirmed);
}

#[test]
fn a_node_is_gone_when_its_row_is_and_one_that_was_never_listed_a_little_later() {
    let (mut peers, [a, b]) = (peers(), [Epoch::new(), Epoch::new()]);
    assert_eq!(survey(&mut peers, &[row("a", a), row("me", Epoch::new())]), []);
    peers.status_of(&node("b"), b);
    let gone = |name| NodeEvent::Gone { node: node(name), leaving: false };
    assert_eq!(survey(&mut peers, &[]), [gone("a")]);
    assert_eq!(survey(&mut peers, &[]), [gone("b")]);
    assert_eq!((peers.status_of(&node("a"), a), peers.alive()), (SenderStatus::Ended, 0));
}

#[test]
fn who_was_not_in_touch_with_the_database_for_a_whole_lease_judges_nobody() {
    let mut peers = peers();
    for (secs, renewed, may) in [
        (0, true, false),
        (14, true, false),
        (15, true, true),
        (16, false, false),
        (20, true, false),
        (30, true, false),
        (35, true, true),
        // A renewal that the database has answered late.
        (50, true, false),
        (60, true, false),
        (65, true, true),
    ] {
        peers.renewed(renewed, LEASE, at(secs));
        assert_eq!(peers.may_judge(LEASE, at(secs)), may, "at {secs} s");
    }
}

#[test]
fn a_missing_beat_is_noticed_once() {
    let mut peers = peers();
    peers.status_of(&node("n"), Epoch::new());
    let beats = [1, 2, 4, 5].map(|number| peers.beats(&node("n"), number, at(1)));
    assert_eq!(beats, [true, true, false, true]);
}

/// Seconds of a lease of 15 s after which two beats are missing, and half a second is over.
const SILENT: u64 = 8;

/// As the timer does: looks at silence from one time to another, and answers when `n` was named, and
/// after how much silence.
fn listen(peers: &mut Peers, from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut named = Vec::new();
    for secs in from..=to {
        let news = peers.listen(LEASE, true, at(secs));
        named.extend(news.into_iter().map(|(_, silence)| (secs, silence.as_secs())));
    }
    named
}

#[test]
fn a_node_of_which_two_beats_are_missing_is_named_once_for_each_silence_and_needs_no_survey() {
    let mut peers = peers();
    peers.survey(&[row("n", Epoch::new())]);
    peers.beats(&node("n"), 1, at(0));
    assert_eq!(listen(&mut peers, 0, 7), []);
    peers.beats(&node("n"), 2, at(7));
    assert_eq!(listen(&mut peers, 8, 60), [(7 + SILENT, SILENT)]);
    let unheard: Vec<_> = peers.unheard(at(60)).collect();
    assert_eq!(unheard, [(&node("n"), Duration::from_secs(53))]);
    peers.beats(&node("n"), 3, at(61));
    assert_eq!(peers.unheard(at(61)).count(), 0);
    assert_eq!(listen(&mut peers, 61, 70), [(61 + SILENT, SILENT)]);
    peers.survey(&[NodeRow { leaving: true, ..row("n", Epoch::new()) }]);
    assert_eq!(peers.unheard(at(70)).count(), 0, "it has stopped");
}

#[test]
fn who_stood_still_gives_the_others_time_to_be_heard() {
    let mut peers = peers();
    peers.survey(&[row("n", Epoch::new())]);
    peers.beats(&node("n"), 1, at(0));
    assert_eq!(listen(&mut peers, 0, 1), []);
    // Its beats of this time are in the mailbox.
    assert_eq!(listen(&mut peers, 50, 50 + SILENT), [(50 + SILENT, SILENT)]);
    // What was reported goes on.
    assert_eq!(listen(&mut peers, 100, 101), []);
    assert_eq!(peers.unheard(at(101)).count(), 1);
}

#[test]
fn who_hears_nobody_blames_nobody() {
    let mut peers = peers();
    peers.survey(&[row("n", Epoch::new())]);
    peers.beats(&node("n"), 1, at(0));
    for secs in 0..60 {
        assert_eq!(peers.listen(LEASE, false, at(secs)), []);
    }
    peers.forgive_silence(at(60));
    assert_eq!(listen(&mut peers, 60, 60 + SILENT), [(60 + SILENT, SILENT)]);
}

#[test]
fn a_node_that_lives_by_the_database_and_is_not_heard_is_read_after_a_lease_and_named_later() {
    let (mut peers, life) = (peers(), Epoch::new());
    peers.survey(&[row("n", life)]);
    let judge = |peers: &mut Peers, secs: u64, life: Epoch| {
        listen(peers, secs - 4, secs);
        peers.survey(&[row("n", life), row("me", Epoch::new())]);
        peers.vouch(LEASE, at(secs));
        (peers.any_contradicted(LEASE, at(secs)), peers.contradicted(LEASE, at(secs)).len())
    };
    for (secs, expected) in [
        (5, (false, 0)),
        (10, (false, 0)),
        (15, (false, 0)),
        (20, (true, 0)),
        (25, (true, 0)),
        // A dead node's lease would be over.
        (30, (true, 1)),
        (35, (true, 0)),
    ] {
        assert_eq!(judge(&mut peers, secs, life), expected, "at {secs} s");
    }
    peers.beats(&node("n"), 1, at(36));
    assert_eq!(judge(&mut peers, 40, life), (false, 0));
    for secs in [45, 50] {
        assert_eq!(judge(&mut peers, secs, life).1, 0);
    }
    let later = Epoch::new();
    assert_eq!(judge(&mut peers, 55, later), (true, 0), "the same silence");
    assert_eq!(judge(&mut peers, 60, later), (true, 1));
    // After a time without the database nobody knows who has lived all the time.
    assert_eq!(judge(&mut peers, 90, later), (false, 0));
}

#[test]
fn a_death_is_not_taken_for_a_wrong_bus_though_the_lease_runs_on_for_a_while() {
    let (mut peers, life) = (peers(), Epoch::new());
    // It died right after the commit that extended its lease, its last beat was at 0.
    for secs in (0..=20).step_by(5) {
        peers.beats(&node("n"), 1, at(0));
        let expired = secs > 18;
        peers.survey(&[NodeRow { expired, ..row("n", life) }]);
        peers.vouch(LEASE, at(secs));
        assert!(peers.contradicted(LEASE, at(secs)).is_empty(), "at {secs} s");
    }
}

#[test]
fn each_arrival_leave_death_and_return_is_reported_once() {
    let (mut peers, [first, second, third]) = (peers(), [(); 3].map(|()| Epoch::new()));
    let alive = |life| [row("n", life)];
    let gone = |life, expired, leaving| [NodeRow { expired, leaving, ..row("n", life) }];
    let mut say = |rows: &[NodeRow]| news(&peers.survey(rows));
    assert_eq!(say(&alive(first)), "+");
    assert_eq!(say(&alive(first)), "");
    assert_eq!(say(&gone(first, false, true)), "-", "its row says so");
    assert_eq!(say(&gone(first, true, true)), "");
    assert_eq!(say(&[]), "", "somebody has buried it");
    assert_eq!(say(&alive(second)), "+");
    assert_eq!(say(&gone(second, true, false)), "", "its lease has run out, and may be renewed");
    assert_eq!(say(&[]), "x", "somebody has buried it");
    assert_eq!(say(&[]), "");
    assert_eq!(say(&alive(third)), "+");
    assert_eq!(say(&alive(Epoch::new())), "x!", "killed and started again in the meantime");
}

#[test]
fn a_leave_that_the_bus_tells_is_not_reported_again_whatever_comes_of_the_rows() {
    for (expired, leaving) in [(false, true), (true, true), (true, false)] {
        let (mut peers, life) = (peers(), Epoch::new());
        peers.survey(&[row("n", life)]);
        assert!(peers.says_that_it_stops(&node("n")));
        assert!(!peers.says_that_it_stops(&node("n")), "twice");
        assert_eq!(peers.alive(), 0);
        let left = NodeRow { expired, leaving, ..row("n", life) };
        assert_eq!(news(&peers.survey(&[left])), "");
        assert_eq!(peers.end(&node("n"), life), None);
        assert!(peers.has_stopped(&node("n"), life));
        assert_eq!(news(&peers.survey(&[row("n", Epoch::new())])), "+");
    }
    let (mut peers, life) = (peers(), Epoch::new());
    peers.survey(&[row("n", life)]);
    peers.says_that_it_stops(&node("n"));
    assert_eq!(news(&peers.survey(&[row("n", Epoch::new())])), "!", "it has started again");
}

#[test]
fn a_node_that_lives_by_the_database_has_not_stopped_whoever_says_so() {
    let (mut peers, life) = (peers(), Epoch::new());
    assert!(!peers.says_that_it_stops(&node("n")), "nobody knows it");
    peers.survey(&[row("n", life)]);
    peers.says_that_it_stops(&node("n"));
    for alive in [0, 1] {
        peers.survey(&[row("n", life)]);
        assert_eq!(peers.alive(), alive);
    }
    assert_eq!(news(&peers.survey(&[])), "x");
}

#[test]
fn a_presence_without_a_row_has_ended_for_the_reason_of_its_node() {
    let mut peers = peers();
    peers.survey(&[row("stays", Epoch::new()), row("stops", Epoch::new())]);
    peers.says_that_it_stops(&node("stops"));
    let causes = ["stays", "stops", "gone"].map(|name| peers.cause_of_absence(&node(name)));
    assert_eq!(causes, [Cause::Disconnected, Cause::Shutdown, Cause::NodeLost]);
}

#[test]
fn whoever_buries_a_node_reports_its_death_once() {
    let (mut peers, life) = (peers(), Epoch::new());
    peers.survey(&[row("n", life)]);
    assert_eq!(peers.end(&node("n"), life), Some(NodeEvent::Died { node: node("n") }));
    assert_eq!(peers.end(&node("n"), life), None);
    assert_eq!(news(&peers.survey(&[])), "");
    assert!(!peers.has_stopped(&node("n"), life));
}

#[test]
fn what_had_stopped_or_died_before_it_was_met_has_not_come() {
    let (mut peers, [left, died]) = (peers(), [(); 2].map(|()| Epoch::new()));
    assert_eq!(news(&peers.survey(&[NodeRow { leaving: true, ..row("n", left) }])), "");
    assert_eq!(news(&peers.survey(&[])), "");
    assert_eq!(news(&peers.survey(&[NodeRow { expired: true, ..row("n", died) }])), "");
    assert_eq!(news(&peers.survey(&[])), "x", "its presences end now");
}

#[test]
fn a_node_that_others_call_buried_lives_as_long_as_its_row_does() {
    let (mut peers, life) = (peers(), Epoch::new());
    peers.survey(&[row("n", life)]);
    peers.is_said_to_be_reaped(&node("n"), life, true);
    peers.ask();
    assert_eq!(survey(&mut peers, &[row("n", life)]), []);
    assert_eq!(peers.status_of(&node("n"), life), SenderStatus::Known);
    peers.is_said_to_be_reaped(&node("n"), life, true);
    peers.ask();
    assert_eq!(survey(&mut peers, &[]), [NodeEvent::Gone { node: node("n"), leaving: true }]);
    assert_eq!(peers.status_of(&node("n"), life), SenderStatus::Ended);
}

#[test]
fn the_database_outranks_an_earlier_word_that_a_life_is_over() {
    let (mut peers, life) = (peers(), Epoch::new());
    peers.survey(&[row("n", life)]);
    peers.ask();
    peers.end(&node("n"), life);
    assert_eq!(survey(&mut peers, &[row("n", life)]), [], "its survey began before");
    peers.ask();
    let expired = NodeRow { expired: true, ..row("n", life) };
    assert_eq!(survey(&mut peers, &[expired]), []);
    assert_eq!(peers.status_of(&node("n"), life), SenderStatus::Ended);
    peers.ask();
    assert_eq!(survey(&mut peers, &[row("n", life)]), [NodeEvent::Recovered { node: node("n") }]);
    assert_eq!(peers.status_of(&node("n"), life), SenderStatus::Known);
}

#[test]
fn the_bus_alone_does_not_make_up_nodes_without_end() {
    let mut peers = peers();
    for number in 0..2 * MAX_UNLISTED {
        peers.status_of(&node(&format!("n{number}")), Epoch::new());
    }
    assert_eq!(peers.alive(), MAX_UNLISTED);
    let real = row("real", Epoch::new());
    assert_eq!(survey(&mut peers, std::slice::from_ref(&real)), []);
    let gone = survey(&mut peers, std::slice::from_ref(&real)).len();
    assert_eq!((gone, peers.alive(), peers.is_alive(&real.node)), (MAX_UNLISTED, 1, true));
}
