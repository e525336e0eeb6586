package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// PartBytes is the largest body of one message, in bytes. Larger values travel
// in parts of this size.
const PartBytes = 1 << 20

// MaxValue is the largest value, in bytes.
const MaxValue = 2 << 30

// manifestVersion is the version of Manifest that is written.
const manifestVersion = 1

// Manifest stands for a value that travelled in parts.
type Manifest struct {
	Version int    `json:"version"`
	Bytes   int    `json:"bytes"`  // of the whole value
	CRC     string `json:"crc32c"` // of the whole value, 8 hex digits
	Parts   []Part `json:"parts"`  // in the order of the value
}

// Part is one stored message of a value.
type Part struct {
	Sequence uint64 `json:"seq"` // in the stream of the manifest
	Bytes    int    `json:"bytes"`
	CRC      string `json:"crc32c"`
}

// parseManifest decodes strictly and checks that the sizes add up.
func parseManifest(data []byte) (Manifest, error) {
	var m Manifest
	if err := DecodeStrict(data, &m); err != nil {
		return Manifest{}, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	if m.Version != manifestVersion {
		return Manifest{}, fmt.Errorf("%w: manifest version %d, this program reads %d", ErrCorrupt, m.Version, manifestVersion)
	}
	if m.Bytes < 0 || m.Bytes > MaxValue {
		return Manifest{}, fmt.Errorf("%w: manifest of %d bytes, the limit is %d", ErrCorrupt, m.Bytes, MaxValue)
	}
	sum := 0
	for i, part := range m.Parts {
		if part.Bytes < 1 || part.Bytes > MaxPayload || part.Sequence == 0 {
			return Manifest{}, fmt.Errorf("%w: manifest: part %d has %d bytes, sequence %d", ErrCorrupt, i, part.Bytes, part.Sequence)
		}
		sum += part.Bytes
	}
	if sum != m.Bytes {
		return Manifest{}, fmt.Errorf("%w: manifest: parts have %d bytes, the value %d", ErrCorrupt, sum, m.Bytes)
	}
	return m, nil
}

// DecodeStrict decodes JSON as every control message on the bus is read: one
// value, no unknown keys, nothing after it.
func DecodeStrict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("bytes after the JSON value")
	}
	return nil
}

// putParts publishes the parts of m below subject and returns the manifest. A
// connection writes one such value at a time.
func (c *Conn) putParts(ctx context.Context, subject string, m Message) (Message, error) {
	select {
	case c.parts <- struct{}{}:
		defer func() { <-c.parts }()
	case <-ctx.Done():
		return Message{}, fmt.Errorf("%w: waiting to publish %s: %w", ErrTimeout, subject, context.Cause(ctx))
	}
	manifest := Manifest{Version: manifestVersion, Bytes: len(m.Data), CRC: checksum(m.Data)}
	nonce := nuid.Next()
	for i, rest := 0, m.Data; len(rest) > 0; i++ {
		size := min(PartBytes, len(rest))
		part := envelope(fmt.Sprintf("%s.%s%s-%d", subject, partToken, nonce, i), Message{Schema: m.Schema, Data: rest[:size]}, "part")
		seq, _, err := c.publish(ctx, part)
		if err != nil {
			return Message{}, err
		}
		manifest.Parts = append(manifest.Parts, Part{Sequence: seq, Bytes: size, CRC: part.Header.Get(headerCRC)})
		rest = rest[size:]
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		return Message{}, fmt.Errorf("bus: manifest of %s: %w", subject, err)
	}
	if len(data) > MaxPayload {
		return Message{}, fmt.Errorf("%w: %s: manifest of %d parts", ErrTooLarge, subject, len(manifest.Parts))
	}
	return Message{Schema: m.Schema, Data: data}, nil
}

// getParts collects the value that manifest stands for.
func getParts(ctx context.Context, stream jetstream.Stream, subject string, manifest Manifest) ([]byte, error) {
	value := make([]byte, 0, manifest.Bytes)
	for i, part := range manifest.Parts {
		raw, err := stream.GetMsg(ctx, part.Sequence)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil, fmt.Errorf("%w: part %d of %s (sequence %d)", ErrNotFound, i, subject, part.Sequence)
		}
		if err != nil {
			return nil, fmt.Errorf("part %d of %s: %w", i, subject, err)
		}
		m, err := open(raw.Subject, raw.Header, raw.Data)
		if err != nil {
			return nil, err
		}
		if len(m.Data) != part.Bytes || raw.Header.Get(headerCRC) != part.CRC {
			return nil, fmt.Errorf("%w: part %d of %s is another message than its manifest says", ErrCorrupt, i, subject)
		}
		value = append(value, m.Data...)
	}
	if got := checksum(value); got != manifest.CRC {
		return nil, fmt.Errorf("%w: %s: checksum %s of the whole, manifest says %s", ErrCorrupt, subject, got, manifest.CRC)
	}
	return value, nil
}
