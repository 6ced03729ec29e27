package org.apache.iceberg.rest; // The Apache project's fixture keeps its parts to its package.

import jakarta.servlet.ServletException;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletRequestWrapper;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.Base64;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Consumer;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.catalog.Catalog;
import org.apache.iceberg.rest.credentials.ImmutableCredential;
import org.apache.iceberg.rest.responses.ConfigResponse;
import org.apache.iceberg.rest.responses.LoadTableResponse;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;

/**
 * The Iceberg REST catalog of the tests: the adapter and servlet of the Apache project's own fixture, over its JDBC catalog.
 *
 * <p>Its main program is not used because it listens on all addresses, asks nobody who they are, and vends no credentials. This one serves the same catalog on two
 * ports of 127.0.0.1: one as the fixture does, and one as catalogs with several warehouses do: it wants OAuth2 tokens, gives the warehouse that is asked for by name
 * a prefix in all paths, and vends S3 credentials to those who ask for them.
 *
 * <p>What it is told comes from environment variables, which other processes cannot read.
 */
final class RestCatalog {
    private static final String WRITER = env("REST_CLIENT_ID");
    private static final String READER = WRITER + "-reader";
    private static final String SECRET = env("REST_CLIENT_SECRET");
    private static final String WAREHOUSE = env("REST_WAREHOUSE_NAME");
    private static final String PREFIX = "warehouse-of-" + WAREHOUSE;
    private static final long TOKEN_SECONDS = 3600;

    public static void main(String[] arguments) throws Exception {
        Map<String, String> properties = Map.ofEntries(
            Map.entry("uri", env("REST_JDBC_URI")),
            Map.entry("jdbc.schema-version", "V1"),
            // As other catalogs do, it refuses a table in a namespace that does not exist.
            Map.entry("jdbc.strict-mode", "true"),
            // SQLite has one writer: further connections would only wait, or fail.
            Map.entry("clients", "1"),
            Map.entry("warehouse", env("REST_WAREHOUSE")),
            Map.entry("io-impl", "org.apache.iceberg.aws.s3.S3FileIO"),
            Map.entry("s3.endpoint", env("S3_ENDPOINT")),
            Map.entry("s3.path-style-access", "true"),
            Map.entry("client.region", env("S3_REGION")),
            Map.entry("s3.access-key-id", env("S3_ACCESS_KEY")),
            Map.entry("s3.secret-access-key", env("S3_SECRET_KEY")));
        Catalog catalog = CatalogUtil.loadCatalog("org.apache.iceberg.jdbc.JdbcCatalog", "rest", properties, null);
        RESTCatalogServlet open = new RESTCatalogServlet(new RESTCatalogAdapter(catalog));
        RESTCatalogServlet guarded = new Guarded(new Vending(catalog));
        serve(open, Integer.parseInt(env("REST_PORT")));
        serve(guarded, Integer.parseInt(env("REST_OAUTH_PORT")));
    }

    private static void serve(RESTCatalogServlet servlet, int port) throws Exception {
        Server server = new Server();
        ServerConnector connector = new ServerConnector(server, 1, 1);
        connector.setHost("127.0.0.1");
        connector.setPort(port);
        server.addConnector(connector);
        ServletContextHandler context = new ServletContextHandler();
        context.addServlet(new ServletHolder(servlet), "/*");
        server.setHandler(context);
        server.start();
    }

    private static String env(String name) {
        String value = System.getenv(name);
        if (value == null) {
            throw new IllegalStateException(name + " is not set");
        }
        return value;
    }

    /** Names the prefix of the warehouse, and gives S3 credentials, which are not those of the catalog, with a table whose client asks for them. */
    private static final class Vending extends RESTCatalogAdapter {
        private static final Map<String, String> PLACE = Map.of(
            "s3.endpoint", env("S3_ENDPOINT"), "s3.path-style-access", "true", "client.region", env("S3_REGION"));
        private static final Map<String, String> KEYS = Map.of(
            "s3.access-key-id", env("S3_VENDED_ACCESS_KEY"), "s3.secret-access-key", env("S3_VENDED_SECRET_KEY"));

        Vending(Catalog catalog) {
            super(catalog);
        }

        @Override
        public <T extends RESTResponse> T handleRequest(
                Route route, Map<String, String> variables, HTTPRequest request, Class<T> type, Consumer<Map<String, String>> headers) {
            T response = super.handleRequest(route, variables, request, type, headers);
            if (response instanceof ConfigResponse config) {
                return type.cast(ConfigResponse.builder()
                    .withDefaults(config.defaults())
                    .withOverrides(config.overrides())
                    .withOverride("prefix", PREFIX)
                    .withEndpoints(config.endpoints())
                    // The fixture honours keys, for this long, but does not say so.
                    .withIdempotencyKeyLifetime("PT30M")
                    .build());
            }
            boolean wanted = request.headers().entries("X-Iceberg-Access-Delegation").stream()
                .anyMatch(header -> header.value().contains("vended-credentials"));
            if (!wanted || !(response instanceof LoadTableResponse loaded)) {
                return response;
            }
            // Both places: newer clients read the credentials, older ones the configuration.
            return type.cast(LoadTableResponse.builder()
                .withTableMetadata(loaded.tableMetadata())
                .addAllConfig(loaded.config())
                .addAllConfig(PLACE)
                .addAllConfig(KEYS)
                .addCredential(ImmutableCredential.builder().prefix("s3://").putAllConfig(PLACE).putAllConfig(KEYS).build())
                .build());
        }
    }

    /**
     * Lets nobody in without a token that it has given out and that has not expired. A token of the client READER may not change anything. With the scope `seconds:N`
     * a token lives that long.
     */
    private static final class Guarded extends RESTCatalogServlet {
        private record Token(String client, Instant end) {}

        private final Map<String, Token> tokens = new ConcurrentHashMap<>();

        Guarded(RESTCatalogAdapter adapter) {
            super(adapter);
        }

        @Override
        protected void service(HttpServletRequest request, HttpServletResponse response) throws ServletException, IOException {
            String bearer = credentials(request, "Bearer ");
            Token token = bearer == null ? null : tokens.get(bearer);
            String path = request.getRequestURI();
            if (path.equals("/v1/oauth/tokens")) {
                giveToken(request, response);
            } else if (token == null || token.end.isBefore(Instant.now())) {
                refuse(response, 401, "NotAuthorizedException", token == null ? "no token" : "the token has expired");
            } else if (token.client.equals(READER) && !request.getMethod().matches("GET|HEAD")) {
                refuse(response, 403, "ForbiddenException", READER + " may only read");
            } else if (path.equals("/v1/config")) {
                if (WAREHOUSE.equals(request.getParameter("warehouse"))) {
                    super.service(request, response);
                } else {
                    refuse(response, 404, "NotFoundException", "no such warehouse");
                }
            } else if (path.startsWith("/v1/" + PREFIX + "/")) {
                super.service(new WithoutPrefix(request), response);
            } else {
                refuse(response, 404, "NotFoundException", "no such path: all begin with /v1/" + PREFIX);
            }
        }

        /** The adapter knows no prefixes. */
        private static final class WithoutPrefix extends HttpServletRequestWrapper {
            WithoutPrefix(HttpServletRequest request) {
                super(request);
            }

            @Override
            public String getRequestURI() {
                return "/v1" + super.getRequestURI().substring(("/v1/" + PREFIX).length());
            }
        }

        private void giveToken(HttpServletRequest request, HttpServletResponse response) throws IOException {
            String basic = credentials(request, "Basic ");
            String given = basic == null
                ? request.getParameter("client_id") + ":" + request.getParameter("client_secret")
                : new String(Base64.getDecoder().decode(basic), StandardCharsets.UTF_8);
            String client = given.substring(0, given.indexOf(':'));
            if (!"client_credentials".equals(request.getParameter("grant_type"))) {
                answer(response, 400, "{\"error\": \"unsupported_grant_type\", \"error_description\": \"only client_credentials\"}");
            } else if (!given.equals(WRITER + ":" + SECRET) && !given.equals(READER + ":" + SECRET)) {
                answer(response, 401, "{\"error\": \"invalid_client\", \"error_description\": \"no such client, or another secret\"}");
            } else {
                String scope = request.getParameter("scope");
                long seconds = scope != null && scope.startsWith("seconds:") ? Long.parseLong(scope.substring(8)) : TOKEN_SECONDS;
                String token = UUID.randomUUID().toString();
                tokens.put(token, new Token(client, Instant.now().plusSeconds(seconds)));
                answer(response, 200, ("{\"access_token\": \"%s\", \"token_type\": \"bearer\", \"expires_in\": %d, "
                    + "\"issued_token_type\": \"urn:ietf:params:oauth:token-type:access_token\"}").formatted(token, seconds));
            }
        }

        private static String credentials(HttpServletRequest request, String scheme) {
            String header = request.getHeader("Authorization");
            return header != null && header.startsWith(scheme) ? header.substring(scheme.length()) : null;
        }

        private static void refuse(HttpServletResponse response, int code, String type, String message) throws IOException {
            answer(response, code, "{\"error\": {\"message\": \"%s\", \"type\": \"%s\", \"code\": %d}}".formatted(message, type, code));
        }

        private static void answer(HttpServletResponse response, int code, String body) throws IOException {
            response.setStatus(code);
            response.setContentType("application/json");
            response.getWriter().write(body);
        }
    }
}
