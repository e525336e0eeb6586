package serve

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The files in testdata/vllm-0.25.1 are answers of a real vLLM server 0.25.1 to
// the requests beside them, with another (micro) checkpoint than the tests use.
type fixture struct {
	Request struct {
		Method, Path string
		Body         any
	}
	Response struct {
		Status  int
		Headers map[string]string
		Body    any
	}
}

func loadFixture(t *testing.T, path string) fixture {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var f fixture
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// restore puts whole content where the recording cut long strings short.
func restore(t *testing.T, v any) any {
	switch v := v.(type) {
	case object:
		for key, value := range v {
			v[key] = restore(t, value)
		}
	case []any:
		for i, value := range v {
			v[i] = restore(t, value)
		}
	case string:
		cut := strings.Contains(v, "...<") && strings.HasSuffix(v, "chars>")
		if cut && strings.HasPrefix(v, "data:") {
			return pngURL(t, 84, 56, len(v))
		}
		if cut {
			return strings.Repeat("red green blue ", 600)
		}
	}
	return v
}

// mayDiffer are paths whose values legitimately have another type here: the
// recorded server ran without --enable-prompt-tokens-details.
var mayDiffer = []string{"usage.prompt_tokens_details"}

// weightsDigest is the one field that our server answers and vLLM does not:
// which weights a reload brought in.
const weightsDigest = ".weights_digest"

// compareShape reports where two JSON values differ in keys or types. Lists are
// compared by their first elements.
func compareShape(at string, got, want any) []string {
	if slices.Contains(mayDiffer, strings.TrimPrefix(at, ".")) {
		return nil
	}
	switch want := want.(type) {
	case object:
		g, ok := got.(object)
		if !ok {
			return []string{fmt.Sprintf("%s is %T, want an object", at, got)}
		}
		var out []string
		for key, value := range want {
			if _, ok := g[key]; !ok {
				out = append(out, fmt.Sprintf("%s.%s is missing", at, key))
				continue
			}
			out = append(out, compareShape(at+"."+key, g[key], value)...)
		}
		for key := range g {
			if _, ok := want[key]; !ok && at+"."+key != weightsDigest {
				out = append(out, fmt.Sprintf("%s.%s is not in vLLM's answer", at, key))
			}
		}
		return out
	case []any:
		g, ok := got.([]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %T, want a list", at, got)}
		}
		if len(want) > 0 && len(g) > 0 {
			return compareShape(at+"[0]", g[0], want[0])
		}
		return nil
	}
	if fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
		return []string{fmt.Sprintf("%s is %T (%v), want %T (%v)", at, got, got, want, want)}
	}
	return nil
}

func TestAnswersHaveTheShapeOfVLLM(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "vllm-0.25.1", "*.json"))
	if err != nil || len(paths) < 30 {
		t.Fatalf("%d fixtures, %v", len(paths), err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		t.Run(name, func(t *testing.T) {
			f := loadFixture(t, path)
			k := newKit(t, func(o *Options) {
				if strings.HasPrefix(name, "models") {
					o.MaxImages = 1
				}
			})
			if strings.HasPrefix(name, "is_paused") {
				k.ok("POST", "/pause?mode=wait", nil)
			}
			body := restore(t, f.Request.Body)
			if request, ok := body.(object); ok && request["logit_bias"] != nil {
				id, _ := k.server.tokens.ID("<|im_end|>") // the recorded one belongs to another vocabulary
				request["logit_bias"] = object{fmt.Sprint(id): 8}
			}
			status, header, raw := k.send(f.Request.Method, f.Request.Path, body)
			if status != f.Response.Status {
				t.Fatalf("status %d, want %d: %s", status, f.Response.Status, raw)
			}
			if want := f.Response.Headers["content-type"]; want != "" && header.Get("Content-Type") != want {
				t.Errorf("content type %q, want %q", header.Get("Content-Type"), want)
			}
			if f.Response.Body == "" {
				if len(raw) != 0 {
					t.Errorf("body %q, want none", raw)
				}
				return
			}
			var got any
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatal(err)
			}
			for _, difference := range compareShape("", got, f.Response.Body) {
				t.Error(difference)
			}
			want, isError := f.Response.Body.(object)["error"].(object)
			if !isError {
				return
			}
			answer := got.(object)["error"].(object)
			for _, key := range []string{"type", "param", "code"} {
				if answer[key] != want[key] {
					t.Errorf("error %s is %v, want %v", key, answer[key], want[key])
				}
			}
			t.Logf("ours: %v\nvLLM: %v", answer["message"], want["message"])
		})
	}
}
