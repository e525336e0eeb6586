package bus

import "github.com/nats-io/nats-server/v2/server"

// Inner hands out the NATS server, for tests that play a foreign client.
func Inner(s *Server) *server.Server { return s.inner }
