//! The addresses of the services.

/// Returns an address from the environment. Fails the test if it is not set: a skipped test proves nothing.
pub(crate) fn address(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs a real RabbitMQ and Postgres. Run `make test`")
    })
}

/// Returns the address of the same server with another path (a database, a vhost) and the same parameters.
pub(crate) fn with_path(url: &str, path: &str) -> String {
    let (address, parameters) = url.split_once('?').map_or((url, None), |(a, p)| (a, Some(p)));
    let (scheme, rest) = address.split_once("://").expect("an address with a scheme");
    let host = rest.split('/').next().unwrap_or(rest);
    let parameters = parameters.map(|parameters| format!("?{parameters}")).unwrap_or_default();
    format!("{scheme}://{host}/{path}{parameters}")
}

/// Returns a unique name.
pub(crate) fn unique_name() -> String {
    format!("test_{}", uuid::Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_changes() {
        assert_eq!(with_path("amqp://u:p@h:1/%2f?heartbeat=5", "v"), "amqp://u:p@h:1/v?heartbeat=5");
        assert_eq!(with_path("amqp://h", "v"), "amqp://h/v");
        assert_eq!(with_path("postgres://u@h:1/d", "n"), "postgres://u@h:1/n");
    }
}
