//! The client in Python does all that the API can, with a key of its own.

use tests::{Api, Fleet, Ran, job};

use super::python;

#[tokio::test]
async fn the_walk_of_the_python_client_works() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").start().await;
    let failing = job("old", "nobody", 1.into());
    fleet.enqueue(std::slice::from_ref(&failing)).await;
    fleet.ended(failing.job_id).await;
    let scopes = "submit,read,content,operate";
    let created = fleet.producer(&["keys", "create", "--tenant", "default", "--scope", scopes]).await;
    assert_eq!(created.code, 0, "{created:?}");
    let ran = Ran::of(python("walk.py", &Api::of(&door).await, created.out.trim()), "").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "walked\n"), "{ran:?}");
    fleet.database.audited().await;
}
