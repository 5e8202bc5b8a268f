//! A program that may reach one port, and is given none, reaches nothing: whatever rules the kernel has for ports.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use process::{Limits, Network, Rules, Sandbox};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const TRIES: &str = "
import errno, socket, sys
try:
    socket.create_connection(('127.0.0.1', int(sys.argv[1])))
    print('ok')
except OSError as error:
    print(errno.errorcode[error.errno])
";

#[tokio::test]
async fn a_run_without_a_port_has_no_sockets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (given, expected) in [(Some(port), "ok\n"), (None, "EPERM\n")] {
        let rules = Rules { network: Network::Port, ..Rules::default() };
        let sandbox = Sandbox::new(rules).expect("right rules");
        let mut command = Command::new("python3");
        command.args(["-c", TRIES, &port.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let entry = sandbox.enter(Path::new("/"), given).expect("an entry");
        let mut group = process::spawn(command, Limits::default(), Some(entry)).await.expect("a process");
        let (_, stdout, _) = group.take_pipes();
        let mut text = String::new();
        stdout.expect("a pipe").read_to_string(&mut text).await.expect("text");
        group.end().await;
        assert_eq!(text, expected, "{given:?}");
    }
}
