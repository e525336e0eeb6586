package bus

import (
	"context"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Inner hands out the NATS server, for tests that play a foreign client.
func Inner(s *Server) *server.Server { return s.inner }

// Put sets the value of name, whatever is there, and returns its revision: what
// a foreign client does.
func (v *Values) Put(ctx context.Context, name string, data []byte) (uint64, error) {
	key, err := v.key(name)
	if err != nil {
		return 0, err
	}
	msg := &nats.Msg{Subject: keySubject(key), Data: data, Header: nats.Header{}}
	revision, _, err := v.conn.publish(ctx, msg)
	return revision, err
}
