import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.util.Properties;

/**
 * Enqueues a job in the same transaction in which a service writes its own row: both are there, or neither is.
 *
 * <pre>
 * DATABASE_URL=postgres://SERVICE:PASSWORD@HOST:5432/DATABASE \
 *     java -classpath /usr/share/java/postgresql.jar examples/EnqueueBySql.java
 * </pre>
 *
 * The driver is Debian's libpostgresql-jdbc-java, or org.postgresql:postgresql. The role in the address needs a tenant:
 * {@code producer roles add SERVICE}. The table {@code orders} stands for the service's own. Prints the job's id, by which
 * {@code producer status} and {@code GET /v1/jobs/ID} find it from the commit on.
 */
public final class EnqueueBySql {
    public static void main(String[] arguments) throws Exception {
        URI address = URI.create(System.getenv("DATABASE_URL"));
        String[] account = address.getUserInfo().split(":", 2);
        Properties settings = new Properties();
        settings.setProperty("user", account[0]);
        settings.setProperty("password", account[1]);
        // Behind a pooler of transactions (which has to ignore the parameter extra_float_digits) the next transaction may have another session, without what was prepared before.
        settings.setProperty("prepareThreshold", "0");
        String url = "jdbc:postgresql://" + address.getHost() + ":" + address.getPort() + address.getPath();
        try (Connection connection = DriverManager.getConnection(url, settings)) {
            connection.setAutoCommit(false);
            try (PreparedStatement order = connection.prepareStatement("INSERT INTO orders (id) VALUES (?)");
                    PreparedStatement enqueue = connection.prepareStatement("SELECT harness_enqueue(?::json)")) {
                order.setInt(1, 1);
                order.executeUpdate();
                enqueue.setString(1, "{\"agent_id\": \"echo\", \"session_id\": \"order-1\", \"input\": {\"order\": 1}}");
                try (ResultSet row = enqueue.executeQuery()) {
                    row.next();
                    System.out.println(row.getString(1));
                }
            }
            connection.commit();
        }
    }
}
