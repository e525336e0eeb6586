package bus

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a value.
const (
	headerSchema = "Uadt-Schema"
	headerCRC    = "Uadt-Crc32c"
	headerParts  = "Uadt-Parts"
)

// Error codes of the server that mean something here.
const (
	codeExists   jetstream.ErrorCode = 10071 // wrong last sequence: the subject is taken
	codeFull     jetstream.ErrorCode = 10077 // maximum messages or bytes exceeded
	codeBuffered jetstream.ErrorCode = 10167 // un-acked publishes fill the ingest queue
	codeInFlight jetstream.ErrorCode = 10164 // a rival's publish to the subject is not decided yet
)

// Message is a typed piece of data.
type Message struct {
	Schema string // name and major version of the content, such as trace-group/1
	Data   []byte
}

// castagnoli is the polynomial with hardware support on both sides.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum renders the CRC-32C of data.
func checksum(data []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(data, castagnoli)) }

// envelope builds the NATS message.
func envelope(subject string, m Message, parts string) *nats.Msg {
	msg := &nats.Msg{Subject: subject, Data: m.Data, Header: nats.Header{}}
	msg.Header.Set(headerSchema, m.Schema)
	msg.Header.Set(headerCRC, checksum(m.Data))
	if parts != "" {
		msg.Header.Set(headerParts, parts)
	}
	return msg
}

// open checks a stored message against its checksum.
func open(subject string, header nats.Header, data []byte) (Message, error) {
	if want, got := header.Get(headerCRC), checksum(data); want != got {
		return Message{}, fmt.Errorf("%w: %s: checksum %s of %d bytes, header says %q", ErrCorrupt, subject, got, len(data), want)
	}
	return Message{Schema: header.Get(headerSchema), Data: data}, nil
}

// create publishes msg unless its subject is taken, and says whether it did. It
// repeats what the bus could not take (not connected, full, overrun, no answer)
// until ctx ends: the expectation makes a repetition harmless.
func (c *Conn) create(ctx context.Context, msg *nats.Msg) (created bool, err error) {
	_, created, err = c.publish(ctx, msg, jetstream.WithExpectLastSequencePerSubject(0))
	return created, err
}

// publish publishes msg with retries and returns its stream sequence. created
// is false when the expectation of options was not met.
func (c *Conn) publish(ctx context.Context, msg *nats.Msg, options ...jetstream.PublishOpt) (seq uint64, created bool, err error) {
	ctx, cancel := c.bounded(ctx, msg.Subject)
	defer cancel()
	start := time.Now()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		seq, err = c.publishOnce(ctx, msg, options)
		if err == nil {
			return seq, true, nil
		}
		api, full := apiError(err), false
		if api != nil {
			switch {
			case api.ErrorCode == codeExists:
				return 0, false, nil
			case api.ErrorCode == codeFull:
				full = true
			case api.ErrorCode == codeBuffered, api.ErrorCode == codeInFlight, api.Code == 503: // may pass
			default:
				return 0, false, fmt.Errorf("bus: publishing %s: %w", msg.Subject, err)
			}
		}
		if err = c.named(ctx, err); errors.Is(err, ErrDenied) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrMaxPayload) {
			return 0, false, fmt.Errorf("bus: publishing %s: %w", msg.Subject, err)
		}
		if pauseErr := pause(ctx, wait); pauseErr != nil {
			waited := time.Since(start).Round(time.Millisecond)
			if errors.Is(pauseErr, context.Canceled) || errors.Is(pauseErr, ErrDenied) {
				return 0, false, pauseErr
			}
			if full {
				return 0, false, fmt.Errorf("%w: publishing %s: waited %s: %w", ErrFull, msg.Subject, waited, err)
			}
			return 0, false, fmt.Errorf("%w: publishing %s: waited %s: %w", ErrTimeout, msg.Subject, waited, err)
		}
	}
}

// publishOnce bounds one attempt, so that an acknowledgement lost with a
// connection does not use up the whole deadline.
func (c *Conn) publishOnce(ctx context.Context, msg *nats.Msg, options []jetstream.PublishOpt) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	options = append([]jetstream.PublishOpt{jetstream.WithRetryAttempts(0)}, options...)
	// The client adds its own headers to the message it is given.
	attempt := &nats.Msg{Subject: msg.Subject, Data: msg.Data, Header: nats.Header{}}
	for key, values := range msg.Header {
		attempt.Header[key] = values
	}
	ack, err := c.js.PublishMsg(ctx, attempt, options...)
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// apiError finds the server's verdict in err.
func apiError(err error) *jetstream.APIError {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api
	}
	return nil
}
