package remote

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

func TestAnswersAreDecodedStrictly(t *testing.T) {
	good := map[string]string{"schema": SchemaAnswer, "version": "1",
		"message": `{"version":1,"instance":"i","command":"score","error":null,"body":{"seconds":1}}`}
	for name, c := range map[string]struct {
		key, value, words string
	}{
		"good":          {"", "", ""},
		"other schema":  {"schema", "uadt.trainer-command", "schema"},
		"newer":         {"version", "2", "version"},
		"unknown key":   {"message", `{"version":1,"instance":"i","command":"c","error":null,"body":{},"more":1}`, "more"},
		"newer message": {"message", `{"version":2,"instance":"i","command":"c","error":null,"body":{}}`, "version 2"},
		"two values":    {"message", `{"version":1} {}`, "after the JSON"},
		"no message":    {"message", "", "message"},
	} {
		metadata := map[string]string{}
		for k, v := range good {
			metadata[k] = v
		}
		if c.key != "" {
			metadata[c.key] = c.value
		}
		data, err := safetensors.Encode(safetensors.File{Metadata: metadata})
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeAnswer(data)
		if c.words == "" && err != nil || c.words != "" && (!errors.Is(err, ErrFrame) || !strings.Contains(err.Error(), c.words)) {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
	}
}

func TestHeartbeatsAreDecodedStrictly(t *testing.T) {
	good := presence{Version: 1, Session: "s", Rank: 1, World: 2, Instance: "i"}
	for name, spoil := range map[string]func(*presence){
		"rank": func(p *presence) { p.Rank = 2 }, "below": func(p *presence) { p.Rank = -1 }, "world": func(p *presence) { p.World = 0 },
		"instance": func(p *presence) { p.Instance = "" }, "version": func(p *presence) { p.Version = 2 },
	} {
		p := good
		spoil(&p)
		data, _ := json.Marshal(p)
		if _, err := decodePresence(bus.Message{Schema: SchemaRank, Data: data}); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	data, _ := json.Marshal(good)
	if _, err := decodePresence(bus.Message{Schema: SchemaRank, Data: data}); err != nil {
		t.Error(err)
	}
	if _, err := decodePresence(bus.Message{Schema: "uadt.trainer-rank/2", Data: data}); !errors.Is(err, ErrFrame) {
		t.Errorf("a newer schema: %v", err)
	}
}

// Whatever bytes come, an answer is read or refused, and what is read can be
// used without a panic.
func FuzzDecodeAnswer(f *testing.F) {
	for _, r := range []reply{
		{body: map[string]int{"a": 1}, tensors: map[string]safetensors.Tensor{"old": safetensors.FromFloat32([]float32{1, 2}, 2), "prompt": safetensors.FromInt32([]int32{3}, 1)}},
		{err: &failure{Type: "BadStepError", Step: 3, Groups: []string{"g"}}},
		{},
	} {
		m, err := encodeAnswer("score", "i", r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Data)
		f.Add(m.Data[:len(m.Data)-1])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := decodeAnswer(data)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("%v is no frame error", err)
			}
			return
		}
		if a.Error != nil {
			_ = a.Error.typed(0, a.Command).Error()
			return
		}
		_, _ = a.floats("old", 2)
		_, _ = a.ints("prompt")
		if _, err := merge([]answer{a}); err == nil && len(a.Body) == 0 {
			t.Fatal("a report without a body")
		}
	})
}

func FuzzDecodePresence(f *testing.F) {
	f.Add([]byte(`{"version":1,"session":"s","rank":0,"world":1,"host":"h","instance":"i","incarnation":3,"step":0,"busy":""}`))
	f.Add([]byte(`{"version":1,"rank":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := decodePresence(bus.Message{Schema: SchemaRank, Data: data})
		if err == nil && (p.Rank < 0 || p.Rank >= p.World || p.World > maxRanks) {
			t.Fatalf("rank %d of %d was taken", p.Rank, p.World)
		}
	})
}
