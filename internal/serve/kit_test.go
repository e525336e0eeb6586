package serve

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/internal/micro"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var corpus = []string{strings.Repeat("the disc is red and the macula is pale, what is the answer? yes no one two three ", 20)}

// newCheckpoint writes a micro checkpoint with the given seed.
func newCheckpoint(t testing.TB, seed uint64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ckpt")
	if _, err := micro.Init(dir, micro.Options{Vocab: 320, Seed: seed, Corpus: corpus, MaxPosition: 1024,
		MinPixels: 4 * 28 * 28, MaxPixels: 16 * 28 * 28}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// kit is a server under test.
type kit struct {
	t      testing.TB
	server *Server
	http   *httptest.Server
}

func newKit(t testing.TB, change func(*Options)) *kit {
	t.Helper()
	options := Options{Dir: newCheckpoint(t, 1), Now: func() time.Time { return time.Unix(1_700_000_000, 0) }}
	if change != nil {
		change(&options)
	}
	s, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	k := &kit{t: t, server: s, http: httptest.NewServer(s.Handler())}
	t.Cleanup(func() {
		k.http.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return k
}

// send makes a request and returns status, header and body. body is JSON, or a
// string to send as it is.
func (k *kit) send(method, path string, body any) (int, http.Header, []byte) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	status, header, raw, err := k.try(ctx, method, path, body)
	if err != nil {
		k.t.Fatal(err)
	}
	return status, header, raw
}

func (k *kit) try(ctx context.Context, method, path string, body any) (int, http.Header, []byte, error) {
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(body)
	default:
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, nil, nil, err
		}
		reader = bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, k.http.URL+path, reader)
	if err != nil {
		return 0, nil, nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, nil, err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	return response.StatusCode, response.Header, raw, err
}

// object is decoded JSON.
type object = map[string]any

func (k *kit) ok(method, path string, body any) object {
	k.t.Helper()
	status, _, raw := k.send(method, path, body)
	if status != http.StatusOK {
		k.t.Fatalf("%s %s: %d %s", method, path, status, raw)
	}
	var out object
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &out); err != nil {
			k.t.Fatalf("%s: %v in %s", path, err, raw)
		}
	}
	return out
}

// pngURL is a data URL of a picture that depends on seed.
func pngURL(t testing.TB, width, height, seed int) string {
	t.Helper()
	m := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			m.Set(x, y, color.RGBA{uint8(x*7 + seed*31), uint8(y*5 + seed*17), uint8((x ^ y) * 3), 255})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return "data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())
}

func textPart(text string) object { return object{"type": "text", "text": text} }

func imagePart(url, uuid string) object {
	part := object{"type": "image_url"}
	if url != "" {
		part["image_url"] = object{"url": url}
	}
	if uuid != "" {
		part["uuid"] = uuid
	}
	return part
}

// ask is a chat request with the given content parts, for further change.
func ask(parts ...object) object {
	return object{"model": "policy", "messages": []object{{"role": "user", "content": parts}},
		"max_completion_tokens": 12, "logprobs": true, "return_token_ids": true, "seed": 1024, "temperature": 1.0,
		"ignore_eos": true}
}

func with(base object, pairs ...any) object {
	out := object{}
	for key, value := range base {
		out[key] = value
	}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i].(string)] = pairs[i+1]
	}
	return out
}

func choicesOf(response object) []object {
	var out []object
	for _, c := range response["choices"].([]any) {
		out = append(out, c.(object))
	}
	return out
}

// fingerprint of what was sampled, to compare answers by.
func sampled(t testing.TB, choice object) string {
	t.Helper()
	raw, err := json.Marshal([]any{choice["token_ids"], choice["logprobs"], choice["finish_reason"]})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// testServerAt wraps a server that listens by itself.
func testServerAt(url string) *httptest.Server {
	return &httptest.Server{URL: url, Config: &http.Server{}}
}
