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

#[test]
fn which_of_two_lives_is_the_later_one_only_the_database_knows() {
    let (mut peers, [old, new]) = (peers(), [Epoch::new(), Epoch::new()]);
    assert_eq!(peers.meet(&node("n"), new), Met::New);
    assert_eq!(peers.meet(&node("n"), old), Met::Unsure, "something late, or a new life");
    peers.ask();
    assert_eq!(peers.survey(&[row("n", new)]), []);
    assert_eq!(peers.meet(&node("n"), old), Met::Over);

    let later = Epoch::new();
    assert_eq!(peers.meet(&node("n"), later), Met::Unsure);
    assert_eq!(peers.survey(&[row("n", later)]), [Finding::Reborn]);
    assert_eq!(peers.meet(&node("n"), new), Met::Over);
    assert_eq!(peers.meet(&node("n"), later), Met::Known);
}

#[test]
fn a_life_that_was_heard_of_during_a_survey_is_not_judged_by_it() {
    let (mut peers, [first, second]) = (peers(), [Epoch::new(), Epoch::new()]);
    peers.meet(&node("n"), first);
    peers.ask();
    assert_eq!(peers.meet(&node("n"), second), Met::Unsure);
    assert_eq!(peers.survey(&[row("n", first)]), []);
    assert_eq!(peers.meet(&node("n"), second), Met::Unsure);
}

#[test]
fn a_node_is_gone_when_its_row_is_and_one_that_was_never_listed_a_little_later() {
    let (mut peers, [a, b]) = (peers(), [Epoch::new(), Epoch::new()]);
    assert_eq!(peers.survey(&[row("a", a), row("me", Epoch::new())]), []);
    peers.meet(&node("b"), b);
    let gone = |name| Finding::Gone { node: node(name), leaving: false };
    assert_eq!(peers.survey(&[]), [gone("a")]);
    assert_eq!(peers.survey(&[]), [gone("b")]);
    assert_eq!((peers.meet(&node("a"), a), peers.alive()), (Met::Over, 0));
}

#[test]
fn who_was_not_in_touch_with_the_database_for_a_whole_lease_judges_nobody() {
    let mut peers = peers();
    for (secs, renewed, may) in [
        (0, true, false),
        (14, true, false),
        (15, true, true),
        (16, false, false),
        (31, true, false),
    ] {
        peers.renewed(renewed, at(secs));
        assert_eq!(peers.may_judge(LEASE, at(secs)), may, "at {secs} s");
    }
}

#[test]
fn what_is_said_twice_is_heard_once_and_a_missing_beat_is_noticed() {
    let (mut peers, life) = (peers(), Epoch::new());
    peers.meet(&node("n"), life);
    assert_eq!(
        [1, 1, 3, 2, 4].map(|number| peers.says(&node("n"), number)),
        [true, false, true, true, true]
    );
    let beats = [1, 2, 2, 4].map(|number| peers.beats(&node("n"), number, at(1)));
    assert_eq!(beats, [true, true, true, false]);
}

#[test]
fn a_wrong_number_of_a_beat_hides_nothing_that_is_missed_after_it() {
    let mut peers = peers();
    peers.meet(&node("n"), Epoch::new());
    let beats = [1, u64::MAX, 2, 3, 5].map(|number| peers.beats(&node("n"), number, at(1)));
    assert_eq!(beats, [true, false, false, true, false]);
}

#[test]
fn a_node_that_lives_and_is_not_heard_for_a_lease_is_named_once_for_each_silence() {
    let (mut peers, life) = (peers(), Epoch::new());
    let mut unheard = |secs: u64, beat: Option<u64>| {
        if let Some(beat) = beat {
            peers.beats(&node("n"), beat, at(secs));
        }
        peers.survey(&[row("n", life), row("me", Epoch::new())]);
        let news = !peers.judge_silence(LEASE, at(secs)).is_empty();
        (news, peers.unheard().count())
    };
    for (secs, beat, expected) in [
        (0, None, (false, 0)),
        (5, None, (false, 0)),
        (10, None, (false, 0)),
        (15, None, (true, 1)),
        (20, None, (false, 1)),
        (25, Some(1), (false, 0)),
        (30, None, (false, 0)),
        (35, None, (false, 0)),
        (40, None, (true, 1)),
    ] {
        assert_eq!(unheard(secs, beat), expected, "at {secs} s");
    }
    let later = Epoch::new();
    assert_eq!(peers.survey(&[row("n", later)]), [Finding::Reborn]);
    assert_eq!(peers.judge_silence(LEASE, at(45)), [], "the same silence");
    assert_eq!(peers.unheard().count(), 1);
    let leaving = NodeRow { leaving: true, ..row("n", later) };
    peers.survey(&[leaving]);
    assert_eq!(peers.unheard().count(), 0, "it has stopped");
}

#[test]
fn who_stood_still_for_long_gives_the_others_a_lease_to_be_heard() {
    let (mut peers, life) = (peers(), Epoch::new());
    for (secs, named) in [(0, false), (5, false), (60, false), (65, false), (70, false), (75, true)]
    {
        peers.survey(&[row("n", life)]);
        assert_eq!(!peers.judge_silence(LEASE, at(secs)).is_empty(), named, "at {secs} s");
    }
}

#[test]
fn a_node_that_others_call_buried_lives_as_long_as_its_row_does() {
    let (mut peers, life) = (peers(), Epoch::new());
    peers.survey(&[row("n", life)]);
    peers.is_said_to_be_buried(&node("n"), life, true);
    peers.ask();
    assert_eq!(peers.survey(&[row("n", life)]), []);
    assert_eq!(peers.meet(&node("n"), life), Met::Known);
    peers.is_said_to_be_buried(&node("n"), life, true);
    peers.ask();
    assert_eq!(peers.survey(&[]), [Finding::Gone { node: node("n"), leaving: true }]);
    assert_eq!(peers.meet(&node("n"), life), Met::Over);
}

#[test]
fn the_database_outranks_an_earlier_word_that_a_life_is_over() {
    let (mut peers, life) = (peers(), Epoch::new());
    peers.survey(&[row("n", life)]);
    peers.ask();
    peers.bury(&node("n"), life);
    assert_eq!(peers.survey(&[row("n", life)]), [], "its survey began before");
    peers.ask();
    let expired = NodeRow { expired: true, ..row("n", life) };
    assert_eq!(peers.survey(&[expired]), []);
    assert_eq!(peers.meet(&node("n"), life), Met::Over);
    peers.ask();
    assert_eq!(peers.survey(&[row("n", life)]), [Finding::Alive { node: node("n") }]);
    assert_eq!(peers.meet(&node("n"), life), Met::Known);
}

#[test]
fn the_bus_alone_does_not_make_up_nodes_without_end() {
    let mut peers = peers();
    for number in 0..2 * UNLISTED {
        peers.meet(&node(&format!("n{number}")), Epoch::new());
    }
    assert_eq!(peers.alive(), UNLISTED);
    let real = row("real", Epoch::new());
    assert_eq!(peers.survey(std::slice::from_ref(&real)), []);
    let gone = peers.survey(std::slice::from_ref(&real)).len();
    assert_eq!((gone, peers.alive(), peers.is_alive(&real.node)), (UNLISTED, 1, true));
}
