//! What is due comes in turn, what cannot be read holds up no other, and what waits has a bound.

use super::*;

fn id(number: usize) -> JobId {
    format!("0198c0de-7a00-7000-8000-{number:012x}").parse().expect("an id")
}

fn follow(topics: &mut Topics, number: usize) -> Arc<Mailbox> {
    let wish = Wish {
        followed: Followed::Job(id(number)),
        behind: StepPlace::START,
        since: None,
        text: None,
        key_id: String::new(),
    };
    topics.enter(wish).1
}

fn numbers(questions: &[Question]) -> Vec<Followed> {
    questions.iter().map(|question| question.followed.clone()).collect()
}

fn nothing() -> Reading {
    Reading {
        seen: Seen::default(),
        version: None,
        since: 0,
        left: Vec::new(),
        more_steps: false,
        looks_later: false,
    }
}

#[test]
fn what_could_not_be_read_comes_behind_all_that_waits() {
    let mut topics = Topics::default();
    let _news: Vec<_> = (0..TOGETHER + 3).map(|number| follow(&mut topics, number)).collect();
    let first = topics.questions();
    assert_eq!(first.len(), TOGETHER);
    topics.unread(first, true);
    let second = topics.questions();
    let expected: Vec<Followed> =
        (TOGETHER..TOGETHER + 3).chain(0..TOGETHER - 3).map(|n| Followed::Job(id(n))).collect();
    assert_eq!(numbers(&second), expected);
}

#[tokio::test]
async fn what_cannot_be_read_is_read_alone_and_given_up_while_the_others_go_on() {
    let mut topics = Topics::default();
    let news: Vec<_> = (0..3).map(|number| follow(&mut topics, number)).collect();
    let together = topics.questions();
    topics.unread(together, false);
    // A new one does not wait for them.
    let _late = follow(&mut topics, 7);
    assert_eq!(numbers(&topics.questions()), [Followed::Job(id(7))]);
    assert!(!topics.is_due());
    for tries in 0..TRIES_ALONE {
        for number in 0..3 {
            let Some(question) = topics.question_apart() else { continue };
            if question.followed == Followed::Job(id(1)) {
                topics.unread(vec![question], false);
            } else {
                assert_eq!((tries, &question.followed), (0, &Followed::Job(id(number))));
                topics.hand_out(question, nothing());
            }
        }
    }
    assert!(topics.question_apart().is_none());
    assert!(matches!(news[1].next().await, Some(News::Unreadable)));
    assert!(news[1].next().await.is_none());
    assert!(matches!(news[0].next().await, Some(News::Seen(_))));
    // Those that can be read are read with the others again; who follows the other one again holds up none of them.
    topics.hear(vec![]);
    topics.sweep();
    let _again = follow(&mut topics, 1);
    assert_eq!(topics.questions().len(), 3);
    assert_eq!(topics.question_apart().map(|question| question.followed), Some(Followed::Job(id(1))));
}

#[test]
fn an_outage_gives_up_nothing() {
    let mut topics = Topics::default();
    let _news = follow(&mut topics, 1);
    for _ in 0..10 {
        let questions = topics.questions();
        assert_eq!(questions.len(), 1);
        topics.unread(questions, true);
    }
}

#[test]
fn who_leaves_is_not_due_and_what_waits_for_all_has_a_bound() {
    let mut topics = Topics::default();
    let followed = Followed::Job(id(1));
    for _ in 0..1_000 {
        follow(&mut topics, 1);
        topics.leave(&followed, topics.next_id);
    }
    assert!(!topics.is_due() && topics.questions().is_empty());
    let news: Vec<_> = (0..8).map(|number| follow(&mut topics, number)).collect();
    let questions = topics.questions();
    for (number, question) in questions.into_iter().enumerate() {
        // Each waits alone, and so may be large.
        let seen = Counted::new(Seen::default(), (number + 1) << 20, &topics.held);
        assert!(topics.topics[&question.followed].places[0].news.offer(News::Seen(Arc::new(seen))));
    }
    topics.keep_within(20 << 20);
    assert!(topics.held.load(Ordering::Relaxed) <= 20 << 20);
    let waiting: Vec<usize> = news.iter().map(|news| news.bytes() >> 20).collect();
    assert_eq!(waiting, [1, 2, 3, 4, 5, 0, 0, 0], "those with most were cut off");
    assert_eq!(topics.topics.len(), 5);
}

#[tokio::test]
async fn who_follows_hears_that_nothing_waits_and_that_the_process_stops() {
    let mut topics = Topics::default();
    let news = follow(&mut topics, 1);
    topics.say_quiet(|id| id != topics.next_id);
    assert!(news.is_empty());
    topics.say_quiet(|id| id == topics.next_id);
    assert!(matches!(news.next().await, Some(News::Quiet)));
    topics.stop();
    for news in [news, follow(&mut topics, 2)] {
        assert!(matches!(news.next().await, Some(News::Stopping)) && news.next().await.is_none());
    }
    assert!(topics.topics.is_empty() && !topics.is_due());
}

#[tokio::test]
async fn a_part_of_what_there_is_has_no_time_and_what_is_left_counts_once() {
    let mut topics = Topics::default();
    let news = follow(&mut topics, 1);
    let question = topics.questions().remove(0);
    let seen = Seen { at: 50, ..Seen::default() };
    topics.hand_out(question, Reading { seen, left: vec![id(2)], ..nothing() });
    let Some(News::Seen(part)) = news.next().await else { panic!("nothing was read") };
    assert!(topics.taken(&Followed::Job(id(1))));
    let question = topics.questions().remove(0);
    assert_eq!((part.at, &question.known, question.left), (0, &vec![id(2)], 1));
    // What could not be read counts as before.
    topics.unread(vec![question], true);
    let question = topics.questions().remove(0);
    assert_eq!(question.left, 1);
    let seen = Seen { at: 60, ..Seen::default() };
    topics.hand_out(question, Reading { seen, ..nothing() });
    topics.sweep();
    assert_eq!(topics.questions().remove(0).left, 0);
}
