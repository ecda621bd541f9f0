import jakarta.persistence.PersistenceException;
import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.function.Consumer;
import org.hibernate.Session;
import org.hibernate.SessionFactory;
import org.hibernate.cfg.Configuration;

/** Uses the recipe for Hibernate, which is the class OutboxEvent; prints the id of each row that must be sent. */
class WithHibernate {
    public static void main(String[] arguments) {
        URI url = URI.create(System.getenv("DATABASE_URL"));
        String[] login = url.getUserInfo().split(":");
        Configuration configuration = new Configuration().addAnnotatedClass(OutboxEvent.class)
            .setProperty("hibernate.connection.url", "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + url.getPath())
            .setProperty("hibernate.connection.username", login[0])
            .setProperty("hibernate.connection.password", login[1])
            .setProperty("hibernate.jdbc.batch_size", "10")
            // Columns and types fit.
            .setProperty("hibernate.hbm2ddl.auto", "validate");
        try (SessionFactory factory = configuration.buildSessionFactory()) {
            factory.inTransaction(session -> {
                OutboxEvent event = order(7);
                session.persist(event);
                session.flush();
                check(event.payload.equals(Map.of("id", 7)), "another payload: " + event.payload);
                session.clear();
                check(session.find(OutboxEvent.class, event.id).type.equals("OrderCreated"), "another type");
                System.out.println(event.id);
            });
            factory.inTransaction(session -> check(all(session).isEmpty(), "a row is shown after the commit"));
            // Inserted and deleted, as with Debezium; by merge, as Spring Data does it with ids that it did not make.
            factory.inTransaction(session -> {
                OutboxEvent event = session.merge(order(1));
                session.flush();
                session.remove(event);
                System.out.println(event.id);
            });
            // In batches, and their deletion as well.
            factory.inTransaction(session -> {
                List<OutboxEvent> events = new ArrayList<>();
                for (int number = 0; number < 25; number++) {
                    events.add(order(number));
                }
                events.forEach(session::persist);
                session.flush();
                check(all(session).size() == 25, "other rows are shown");
                events.forEach(session::remove);
                events.forEach(event -> System.out.println(event.id));
            });
            refused(factory, "aggregatetype 'Customer' has no route", session -> {
                OutboxEvent event = order(1);
                event.aggregatetype = "Customer";
                session.persist(event);
            });
        }
    }

    static OutboxEvent order(int number) {
        OutboxEvent event = new OutboxEvent();
        event.aggregatetype = "Order";
        event.aggregateid = "7";
        event.type = "OrderCreated";
        event.payload = Map.of("id", number);
        return event;
    }

    static List<OutboxEvent> all(Session session) {
        return session.createSelectionQuery("from OutboxEvent", OutboxEvent.class).getResultList();
    }

    static void refused(SessionFactory factory, String problem, Consumer<Session> work) {
        try {
            factory.inTransaction(work::accept);
        } catch (PersistenceException error) {
            check(error.getMessage().contains(problem), error.getMessage());
            return;
        }
        throw new AssertionError("not refused: " + problem);
    }

    static void check(boolean isRight, String problem) {
        if (!isRight) {
            throw new AssertionError(problem);
        }
    }
}
