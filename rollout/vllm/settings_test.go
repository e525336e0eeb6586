package vllm

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
)

// recorded is what vLLM 0.25.1 answered, less most of its keys.
func recorded(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/server_info.json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSettingsOfRecordedAnswer(t *testing.T) {
	s, err := parseSettings(recorded(t))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Settings{LogprobsMode: "processed_logprobs", MaxLogprobs: 21, Images: 6}); *s != want {
		t.Errorf("%+v, want %+v", *s, want)
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		text string
		want Settings
	}{
		{`{"vllm_config":{"model_config":{}}}`, Settings{Images: defaultImages}},
		{`{"vllm_config":{"model_config":{"multimodal_config":{"limit_per_prompt":{"image":{"count":0}}}}}}`, Settings{}},
		{`{"vllm_config":{"model_config":{"multimodal_config":null},"lora_config":{"max_lora_rank":64},"weight_transfer_config":{"backend":"nccl"}}}`,
			Settings{Images: defaultImages, Broadcast: true, Adapters: true, AdapterRank: 64}},
	} {
		if got, err := parseSettings([]byte(c.text)); err != nil || *got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{"", "null", "{}", `{"vllm_config":"text"}`, `{"vllm_config":{"model_config":null}}`} {
		if s, err := parseSettings([]byte(text)); err == nil {
			t.Errorf("%q: %+v, want an error", text, s)
		}
	}
}

func TestInspectAsksForSettings(t *testing.T) {
	f := newFake(t)
	answer := recorded(t)
	f.setHook(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path != "/server_info" || r.URL.Query().Get("config_format") != "json" {
			return false
		}
		_, err := w.Write(answer)
		return err == nil
	})
	info, err := Inspect(context.Background(), f.server.URL, Options{})
	if err != nil || info.Settings == nil || info.Settings.Images != 6 {
		t.Errorf("%+v, %v", info, err)
	}
	answer = []byte("<html>")
	if info, err = Inspect(context.Background(), f.server.URL, Options{}); err == nil || !strings.Contains(err.Error(), "does not fit") || info.Model != "policy" {
		t.Errorf("garbage: %+v, %v", info, err)
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add(recorded(f))
	f.Add([]byte(`{"vllm_config":{"model_config":{"multimodal_config":{"limit_per_prompt":{"image":null}}}}}`))
	f.Add([]byte(`{"vllm_config":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parseSettings(data); (s == nil) == (err == nil) {
			t.Errorf("%+v and %v for %q", s, err, data)
		}
	})
}
