//! One rule of TLS for every server that a process connects to: its certificate is always verified, by the system's
//! authorities and those that are configured. The server gets the decoded credentials of the address, and no log shows
//! them.

use serde_json::json;
use tests::{Authority, Collector, Fleet, OwnBroker, Ran, TlsFront, Vhost, job, until};

/// The `user:password@host` of a plain address with a TLS port, under a name that the certificate has.
fn with_tls(plain: &str, host: &str, port: u16) -> String {
    let (user, rest) = plain.split_once('@').expect("credentials");
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    format!("{}@{host}:{port}/{path}", user.replacen("amqp:", "amqps:", 1).replacen("http:", "https:", 1))
}

/// Looks like a certificate, but is none.
const DAMAGED: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

async fn doctor(fleet: &Fleet, amqp_url: &str, more: &[(&str, &str)]) -> Ran {
    let mut command = fleet.producer_command(&["doctor"]);
    command.env("AMQP_URL", amqp_url).envs(more.iter().copied());
    Ran::of(command, "").await
}

#[tokio::test]
async fn a_broker_with_an_authority_of_ones_own_is_verified_by_it_and_by_nothing_else() {
    let (fleet, authority) = (Fleet::new().await, Authority::new());
    let certificate = authority.certificate("localhost");
    let (broker, port) = OwnBroker::with_tls(&certificate).await;
    let file = certificate.authority.to_string_lossy().into_owned();
    let url = with_tls(&broker.url, "localhost", port);

    let ran = doctor(&fleet, &url, &[]).await;
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("UnknownIssuer: expected TLS_CA_FILE (or cacertfile in AMQP_URL)"), "{ran:?}");
    let ran = doctor(&fleet, &url, &[("TLS_CA_FILE", "/nowhere/ca.pem")]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err.contains("TLS_CA_FILE: /nowhere/ca.pem") && ran.err.contains("cannot be read"),
        "{ran:?}"
    );
    let stranger = Authority::new();
    let ran = doctor(&fleet, &url, &[("TLS_CA_FILE", &stranger.file().to_string_lossy())]).await;
    assert!(ran.code != 0 && ran.out.contains("UnknownIssuer"), "{ran:?}");
    let elsewhere = with_tls(&broker.url, "127.0.0.1", port);
    let ran = doctor(&fleet, &elsewhere, &[("TLS_CA_FILE", &file)]).await;
    assert!(ran.code != 0 && ran.out.contains("not valid for name"), "{ran:?}");

    let damaged = fleet.folder.path().join("damaged.pem");
    let good = std::fs::read_to_string(&file).expect("a certificate");
    std::fs::write(&damaged, format!("{good}{DAMAGED}")).expect("written");
    let ran = doctor(&fleet, &format!("{url}?cacertfile={}", damaged.display()), &[]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("damaged.pem, whose certificate 2 cannot be used: "), "{ran:?}");

    assert_eq!(doctor(&fleet, &url, &[("TLS_CA_FILE", &file)]).await.code, 0);
    let by_url = format!("{url}?cacertfile={file}");
    assert_eq!(doctor(&fleet, &by_url, &[]).await.code, 0);
    let _worker = fleet.worker("worker").set("AMQP_URL", &url).set("TLS_CA_FILE", &file).start().await;
    let spec = job("s", "echo", json!(1));
    let mut enqueue = fleet.producer_command(&["enqueue", "--file", "-"]);
    enqueue.env("AMQP_URL", by_url);
    let ran = Ran::of(enqueue, &job::encode(&spec)).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    fleet.undisturbed(&[spec]).await;
}

#[tokio::test]
async fn the_management_api_gets_the_decoded_credentials_and_only_if_its_certificate_is_good() {
    let (fleet, authority) = (Fleet::new().await, Authority::new());
    let plain = fleet.vhost.management_url();
    let host = plain.rsplit_once('@').expect("a user").1;
    let front = TlsFront::to(host, &authority.certificate("localhost")).await;
    let special = fleet.vhost.monitor("us@er", "p@ss:/?#%");
    let credentials = special.credentials();
    assert!(credentials.contains("%40") && !credentials.contains("p@ss"), "{credentials}");

    let observe = async |url: &str, more: &[(&str, &str)]| {
        let mut command = fleet.autoscaler_command(&["observe"]);
        command.env("MANAGEMENT_URL", url).envs(more.iter().copied());
        let ran = Ran::of(command, "").await;
        assert!(!format!("{ran:?}").contains("p@ss") && !format!("{ran:?}").contains("p%40ss"), "{ran:?}");
        ran
    };
    fleet.vhost.broker().await.close().await;
    let file = authority.file().to_string_lossy().into_owned();
    let known = async |url: &str| {
        let look = async || {
            let ran = observe(url, &[("TLS_CA_FILE", &file)]).await;
            (ran.json().first()?.get("managed_ready")? == &json!(0)).then_some(())
        };
        until("its numbers are read", look).await;
    };
    known(&format!(" http://{credentials}@{host}\n")).await;
    let https = format!("https://{credentials}@localhost:{}", front.port);
    known(&https).await;
    let ran = observe(&https, &[]).await;
    assert!(ran.out.contains("expected TLS_CA_FILE to name the file of its authority"), "{ran:?}");
}

#[tokio::test]
async fn a_receiver_of_traces_gets_the_decoded_credentials_and_only_if_its_certificate_is_good() {
    let (fleet, authority, collector) = (Fleet::new().await, Authority::new(), Collector::start().await);
    let host = collector.url.split_once("://").expect("an address").1;
    let front = TlsFront::to(host, &authority.certificate("localhost")).await;
    let url = format!("https://us%40er:p%40ss@localhost:{}", front.port);
    let trusting = fleet.worker("trusting").traced(&url).set("TLS_CA_FILE", authority.file().display());
    let worker = trusting.start().await;
    let strict = fleet.worker("strict").traced(&url).start().await;
    let jobs: Vec<_> = (0..40).map(|n| job(&format!("s-{n}"), "echo", json!(n))).collect();
    fleet.enqueue(&jobs).await;
    fleet.undisturbed(&jobs).await;
    collector.span("process harness.jobs.default", |_| true).await;
    for headers in collector.headers() {
        assert_eq!(headers.get("authorization").expect("credentials"), "Basic dXNAZXI6cEBzcw==");
    }
    let refused = strict.said("spans cannot be exported").await;
    assert!(refused.contains("expected TLS_CA_FILE to name the file of its authority"), "{refused}");
    assert!(!refused.contains("p@ss") && !refused.contains("p%40ss"), "{refused}");
    drop(worker);
}

#[tokio::test]
async fn addresses_that_cannot_be_used_are_refused_together_with_what_would_be_right() {
    let (fleet, authority) = (Fleet::new().await, Authority::new());
    let damaged = fleet.folder.path().join("damaged.pem");
    let good = std::fs::read_to_string(authority.file()).expect("a certificate");
    std::fs::write(&damaged, format!("{good}{DAMAGED}")).expect("written");
    let mut command = fleet.autoscaler_command(&["observe"]);
    command
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", &damaged)
        .env("AMQP_URL", "amqps://me:s3cret@rabbit/x?verify=verify_none")
        .env("MANAGEMENT_URL", "http://me:s3c/ret@rabbit:15672")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")
        .env("TLS_CA_FILE", "/dev/null");
    let ran = Ran::of(command, "").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    for text in [
        r#"AMQP_URL has the parameter "verify", there are heartbeat, frame_max,"#,
        "MANAGEMENT_URL: cannot be read (invalid port number; characters like / # ? @ % in a user or password",
        "OTEL_EXPORTER_OTLP_ENDPOINT: does not start with http:// or https://, expected the address of an OTLP",
        "damaged.pem: certificate 2 cannot be used: ",
        "TLS_CA_FILE: /dev/null has no certificate in it, expected -----BEGIN CERTIFICATE-----",
    ] {
        assert!(ran.err.contains(text), "{text}: {ran:?}");
    }
    assert!(!ran.err.contains("s3c"), "{ran:?}");
}

#[tokio::test]
async fn an_ipv6_address_is_one_like_any_other() {
    let vhost = Vhost::new();
    let host = vhost.management_url().rsplit_once('@').expect("a user").1;
    let (_, port) = host.rsplit_once(':').expect("a port");
    let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else {
        eprintln!("this machine has no IPv6");
        return;
    };
    let own = listener.local_addr().expect("an address");
    let target = format!("127.0.0.1:{}", port.trim_end_matches('/'));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(target).await.ok()?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()
            });
        }
    });
    let (scheme, rest) = vhost.management_url().split_once("://").expect("an address");
    let user = rest.rsplit_once('@').expect("a user").0;
    let url = format!("{scheme}://{user}@{own}");
    let authorities = service::Authorities::default();
    let asked = autoscaler::observe::Management::new(&url, vhost.name(), &authorities).expect("an address");
    let ready = asked.ready().await.expect("an answer");
    assert!(ready.is_empty(), "{ready:?}");
}
