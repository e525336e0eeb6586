package bus

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"
)

func TestSubjectRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[A-Za-z0-9_-]{1,12}`)
		scope := Scope{Run: name.Draw(t, "run"), Incarnation: rapid.Uint64Min(1).Draw(t, "e")}
		key := strings.Join(rapid.SliceOfN(name, 1, 3).Draw(t, "key"), ".")
		got, kind, gotKey, err := parseSubject(scope.subject(Traces, key))
		if err != nil || got != scope || kind != Traces || gotKey != key {
			t.Fatalf("%+v %s %s, %v", got, kind, gotKey, err)
		}
	})
	if s := (Scope{Run: "r"}).subject(Jobs, "*"); s != "uadt.r.*.job.*" {
		t.Fatalf("got %s", s)
	}
	for _, bad := range []string{"", "uadt.r.1.job", "other.r.1.job.k", "uadt.r.x.job.k", "uadt.r.0.job.k", "uadt.r.-1.job.k"} {
		if _, _, _, err := parseSubject(bad); !errors.Is(err, ErrName) {
			t.Errorf("%q: got %v, want ErrName", bad, err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, bad := range []string{"", "a.b", "a b", "*", ">", "ü", "a\n", strings.Repeat("x", 129)} {
		if err := CheckName(bad); !errors.Is(err, ErrName) {
			t.Errorf("%q: got %v, want ErrName", bad, err)
		}
	}
	for _, good := range []string{"a", "A-Z_09", strings.Repeat("x", 128)} {
		if err := CheckName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	if err := checkKey("0.part-1"); !errors.Is(err, ErrName) {
		t.Errorf("got %v, want ErrName: a key that looks like a part", err)
	}
	if err := checkKey("part-1"); err != nil {
		t.Error(err)
	}
}

func TestDecodeStrict(t *testing.T) {
	var into struct {
		A int `json:"a"`
	}
	if err := DecodeStrict([]byte(" {\"a\": 3}\n"), &into); err != nil || into.A != 3 {
		t.Fatalf("%+v, %v", into, err)
	}
	for _, bad := range []string{"", "{", `{"a":"x"}`, `{"b":1}`, `{"a":1}{"a":2}`, `{"a":1} ]`} {
		if err := DecodeStrict([]byte(bad), &into); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestOpenChecksTheSum(t *testing.T) {
	msg := envelope("s", Message{Schema: "x/1", Data: []byte("data")}, "")
	if m, err := open("s", msg.Header, msg.Data); err != nil || m.Schema != "x/1" {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := open("s", msg.Header, []byte("dat4")); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	if _, err := open("s", nats.Header{}, []byte("data")); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	// The check value of CRC-32C in the catalogues.
	if got := checksum([]byte("123456789")); got != "e3069283" {
		t.Fatalf("CRC-32C of 123456789 is %s", got)
	}
}

func TestManifestIsStrict(t *testing.T) {
	good := `{"version":1,"bytes":3,"crc32c":"00000000","parts":[{"seq":1,"bytes":1,"crc32c":""},{"seq":2,"bytes":2,"crc32c":""}]}`
	if m, err := parseManifest([]byte(good)); err != nil || len(m.Parts) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, change := range map[string][2]string{
		"version":        {`"version":1`, `"version":2`},
		"unknown key":    {`"version":1`, `"version":1,"x":1`},
		"sum":            {`"bytes":3`, `"bytes":4`},
		"negative":       {`"bytes":3`, `"bytes":-3`},
		"huge":           {`"bytes":3`, `"bytes":3000000000`},
		"empty part":     {`"bytes":1`, `"bytes":0`},
		"no sequence":    {`"seq":2`, `"seq":0`},
		"trailing bytes": {`]}`, `]}{}`},
	} {
		if _, err := parseManifest([]byte(strings.Replace(good, change[0], change[1], 1))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
	}
}

// FuzzManifest checks that no bytes crash the reader and that what it accepts
// adds up.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version":1,"bytes":1,"crc32c":"00000000","parts":[{"seq":1,"bytes":1,"crc32c":""}]}`))
	f.Add([]byte(`{"version":1,"bytes":0,"crc32c":"","parts":[]}`))
	f.Add([]byte(`{"version":1,"bytes":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error without ErrCorrupt: %v", err)
			}
			return
		}
		sum := 0
		for _, part := range m.Parts {
			sum += part.Bytes
		}
		if sum != m.Bytes || sum > MaxValue {
			t.Fatalf("%d bytes in parts, %d in all", sum, m.Bytes)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
	})
}
