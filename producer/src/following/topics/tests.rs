//! What is due comes in turn, what cannot be read holds up no other, and what waits has a bound.

use job::{JobState, SessionKey};

use super::part::{HINTED_TOGETHER, TOGETHER, TRIES_ALONE};
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
    assert_eq!((part.at, &question.ended, question.counts(id(2))), (0, &vec![id(2)], true));
    // What could not be read counts as before.
    topics.unread(vec![question], true);
    let question = topics.questions().remove(0);
    assert!(question.counts(id(2)) && !question.counts(id(3)));
    let seen = Seen { at: 60, ..Seen::default() };
    topics.hand_out(question, Reading { seen, ..nothing() });
    topics.sweep();
    assert!(!topics.questions().remove(0).counts(id(2)));
}

/// Follows a session behind an earlier stream.
fn follow_session(topics: &mut Topics, number: usize) -> (Followed, Arc<Mailbox>) {
    let followed = Followed::Session(SessionKey::of_ledger(format!("s-{number}")));
    let wish = Wish {
        followed: followed.clone(),
        behind: StepPlace::START,
        since: Some(0),
        text: None,
        key_id: String::new(),
    };
    (followed, topics.enter(wish).1)
}

fn ended(job_id: JobId) -> Ended {
    let mut view = crate::following::sequence::tests::end(0, 0);
    Arc::get_mut(&mut view.view).expect("one").job_id = job_id;
    view
}

#[tokio::test]
async fn streams_that_catch_up_share_each_question_with_all_others_and_have_every_end_once_in_order() {
    const STREAMS: usize = 40;
    const ENDED: usize = 1_000;
    let mut topics = Topics::default();
    let streams: Vec<_> = (0..STREAMS).map(|number| follow_session(&mut topics, number)).collect();
    let job = |session: usize, number: usize| id(1_000_000 + session * ENDED + number);
    for (session, question) in topics.questions().into_iter().enumerate() {
        let left = (0..ENDED).map(|number| job(session, number)).collect();
        topics.hand_out(question, Reading { version: Some(ENDED as i64), left, ..nothing() });
    }
    // One job whose changes are not announced.
    let quiet = follow(&mut topics, 1);
    let first = topics.questions();
    assert_eq!(numbers(&first), [Followed::Job(id(1))]);
    first.into_iter().for_each(|question| topics.hand_out(question, nothing()));
    assert!(matches!(quiet.next().await, Some(News::Seen(_))));

    let mut shown = vec![Vec::new(); STREAMS];
    for round in 0.. {
        for (session, (followed, news)) in streams.iter().enumerate() {
            while !news.is_empty() {
                let Some(News::Seen(seen)) = news.next().await else { panic!("expected ends") };
                shown[session].extend(seen.ended.iter().map(|ended| ended.view.job_id));
            }
            topics.taken(followed);
        }
        topics.sweep();
        if shown.iter().all(|shown| shown.len() == ENDED) {
            break;
        }
        // New ends are asked about at once, and shown behind the older ones.
        let session = round % STREAMS;
        let newest = id(9_000_000 + round);
        topics.topics.get_mut(&streams[session].0).expect("followed").hinted.push(newest);
        let questions = topics.questions();
        let of = |followed: &Followed| questions.iter().find(|question| &question.followed == followed);
        assert!(of(&Followed::Job(id(1))).is_some(), "round {round}: what is quiet is read too");
        assert!(of(&streams[session].0).is_some_and(|question| question.hinted == [newest]));
        assert!(questions.iter().map(|question| question.ended.len()).sum::<usize>() <= ENDS);
        let shares = questions.iter().filter(|question| !question.left.is_empty()).map(|of| of.ended.len());
        assert!(shares.clone().min() == shares.max(), "all have the same share");
        for question in questions {
            let read = question.ended.iter().map(|job_id| ended(*job_id)).collect();
            let seen = Seen { ended: read, ..Seen::default() };
            topics.hand_out(question, Reading { seen, version: Some(ENDED as i64), ..nothing() });
        }
    }
    for (session, shown) in shown.into_iter().enumerate() {
        assert_eq!(shown, (0..ENDED).map(|number| job(session, number)).collect::<Vec<_>>());
    }
}

#[test]
fn sessions_with_very_many_announced_jobs_have_their_turns_in_several_questions() {
    let mut topics = Topics::default();
    let streams: Vec<_> = (0..TOGETHER).map(|number| follow_session(&mut topics, number).0).collect();
    for question in topics.questions() {
        topics.hand_out(question, nothing());
    }
    for (number, session) in streams.iter().enumerate() {
        let topic = topics.topics.get_mut(session).expect("followed");
        topic.hinted.extend((0..HINTED).map(|job| id(number * HINTED + job)));
        topics.make_due(session);
    }
    let mut asked = Vec::new();
    while topics.is_due() {
        let questions = topics.questions();
        let hinted: usize = questions.iter().map(|question| question.hinted.len()).sum();
        assert!(hinted < HINTED_TOGETHER + HINTED, "{hinted} at once");
        asked.extend(numbers(&questions));
    }
    assert_eq!(asked, streams);
}

#[tokio::test]
async fn an_end_that_all_followers_have_is_neither_asked_about_nor_counted_again() {
    let mut topics = Topics::default();
    let (followed, news) = follow_session(&mut topics, 1);
    let change = |number| Change::new(id(number), SessionKey::of_ledger("s-1"), JobState::Succeeded);
    let read = |topics: &mut Topics, question: Question, finished_ms: i64| {
        let ended = question.hinted.iter().map(|job_id| Ended { finished_ms, ..ended(*job_id) }).collect();
        let seen = Seen { ended, ..Seen::default() };
        topics.hand_out(question, Reading { seen, version: Some(1), since: 100, ..nothing() });
    };
    let first = topics.questions().remove(0);
    topics.hand_out(first, nothing());
    assert!(topics.hear(vec![change(1)]));
    let question = topics.questions().remove(0);
    read(&mut topics, question, 100);
    assert!(!topics.hear(vec![change(1)]) && !topics.is_due(), "it has been shown");
    assert!(topics.hear(vec![change(2)]));
    let question = topics.questions().remove(0);
    assert!(question.hinted == [id(2)] && question.counts(id(1)) && !question.counts(id(2)));
    // It may come again for as long as ends are looked for.
    read(&mut topics, question, 99);
    assert!(!topics.hear(vec![change(1)]) && topics.hear(vec![change(2)]));
    // Who goes on behind an earlier stream does not have it.
    let question = topics.questions().remove(0);
    read(&mut topics, question, 100);
    let (_, late) = follow_session(&mut topics, 1);
    let question = topics.questions().remove(0);
    assert!(question.version.is_none() && !question.counts(id(1)) && !question.counts(id(2)));
    // Nor has one that comes while the question is answered.
    let (_, later) = follow_session(&mut topics, 1);
    let seen = Seen { ended: vec![Ended { finished_ms: 100, ..ended(id(3)) }], ..Seen::default() };
    topics.hand_out(question, Reading { seen, since: 100, ..nothing() });
    assert!(!late.is_empty() && later.is_empty());
    assert!(topics.hear(vec![change(3)]) && topics.topics[&followed].shown.is_empty());
    drop(news);
}
