package vllm

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/uadt-train/uadt-train/rollout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a server that answers as vLLM does: traces are a function of weights,
// messages and seed. Tests script its failures through hook.
type fake struct {
	t      *testing.T
	server *httptest.Server
	maxLen int

	mu       sync.Mutex
	path     string // directory of the weights
	paused   bool
	resumed  chan struct{} // closed when not paused
	tokens   int           // the progress counter
	start    float64
	routes   []string         // every route that was called, but probes
	requests []map[string]any // bodies of chat completions
	member   *fakeGroup       // that it takes broadcasts in
	adapters []string         // served ones, name=path; nil for a server without the routes
	// hook may answer a request itself and then returns true.
	hook func(w http.ResponseWriter, r *http.Request, body []byte) bool
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, maxLen: 1 << 16, start: 1, resumed: make(chan struct{})}
	close(f.resumed)
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

func (f *fake) setHook(hook func(w http.ResponseWriter, r *http.Request, body []byte) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// called counts calls of a route.
func (f *fake) called(route string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.routes {
		if strings.HasPrefix(r, route) {
			n++
		}
	}
	return n
}

var probes = map[string]bool{"/health": true, "/metrics": true, "/is_paused": true}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	hook := f.hook
	if !probes[r.URL.Path] {
		f.routes = append(f.routes, r.URL.RequestURI())
	}
	f.mu.Unlock()
	if hook != nil && hook(w, r, body) {
		return
	}
	f.mu.Lock()
	resumed := f.resumed
	f.mu.Unlock()
	switch r.URL.Path {
	case "/health", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache":
	case "/version":
		fmt.Fprint(w, `{"version":"0.0.1"}`)
	case "/v1/models":
		f.models(w)
	case "/is_paused":
		f.mu.Lock()
		fmt.Fprintf(w, `{"is_paused":%v}`, f.paused)
		f.mu.Unlock()
	case "/metrics":
		f.mu.Lock()
		fmt.Fprintf(w, "# HELP x\nvllm:generation_tokens_total{engine=\"0\",model_name=\"policy\"} %d\nprocess_start_time_seconds %g\n", f.tokens, f.start)
		f.mu.Unlock()
	case "/pause":
		f.setPaused(true)
		fmt.Fprint(w, `{"status":"paused"}`)
	case "/resume":
		f.setPaused(false)
		fmt.Fprint(w, `{"status":"resumed"}`)
	case "/collective_rpc":
		f.rpc(w, body)
	case "/v1/chat/completions":
		select { // a paused server takes requests and holds them
		case <-resumed:
		case <-r.Context().Done():
			return
		}
		f.chat(w, body)
	default:
		if !f.transfer(w, r, body) && !f.lora(w, r, body) {
			refuse(w, 404, `{"detail":"Not Found"}`)
		}
	}
}

func (f *fake) setPaused(paused bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if paused != f.paused {
		f.paused = paused
		if paused {
			f.resumed = make(chan struct{})
		} else {
			close(f.resumed)
		}
	}
}

func refuse(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprint(w, body)
}

func (f *fake) rpc(w http.ResponseWriter, body []byte) {
	var call struct {
		Method string
		Kwargs map[string]string
	}
	if err := json.Unmarshal(body, &call); err != nil || call.Method != "reload_weights" {
		f.t.Errorf("collective_rpc %s", body)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.paused {
		f.t.Error("weights were changed on a server that was not paused")
	}
	path := call.Kwargs["weights_path"]
	if strings.Contains(path, "missing") {
		refuse(w, 500, `{"error":{"message":"no such directory","type":"InternalServerError","param":null,"code":500}}`)
		return
	}
	f.path = path
	fmt.Fprint(w, `{"results":[null]}`)
}

type fakeRequest struct {
	Model    string
	Messages json.RawMessage
	N        int
	Seed     int64
	Max      int `json:"max_completion_tokens"`
	Top      int `json:"top_logprobs"`
	Salt     string
	Bias     map[string]float64 `json:"logit_bias"`
}

func (f *fake) chat(w http.ResponseWriter, body []byte) {
	var r fakeRequest
	var all map[string]any
	if json.Unmarshal(body, &r) != nil || json.Unmarshal(body, &all) != nil || r.N < 1 {
		refuse(w, 400, `{"error":{"message":"bad request","code":400}}`)
		return
	}
	adapter, ok := f.adapter(r.Model)
	if r.Model != "policy" && !ok {
		refuse(w, 404, `{"error":{"message":"no such model","code":404}}`)
		return
	}
	if r.Max > f.maxLen {
		refuse(w, 400, `{"error":{"message":"too long","type":"BadRequestError","param":"max_completion_tokens","code":400}}`)
		return
	}
	f.mu.Lock()
	path := f.path + adapter
	f.requests = append(f.requests, all)
	f.mu.Unlock()
	var choices []string
	total := 0
	for i := range r.N {
		text, n := fakeChoice(path, r, i)
		choices = append(choices, text)
		total += n
	}
	f.mu.Lock()
	f.tokens += total
	f.mu.Unlock()
	fmt.Fprintf(w, `{"id":"x","choices":[%s],"prompt_token_ids":[1,2,3],"usage":{"completion_tokens":%d}}`, strings.Join(choices, ","), total)
}

// fakeChoice renders choice i of a request under the weights in path.
func fakeChoice(path string, r fakeRequest, i int) (text string, tokens int) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%s|%d", path, r.Messages, r.Seed+int64(i)))
	rng := rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum[:]), 1))
	n, finish := min(3+rng.IntN(20), r.Max), "stop"
	if n == r.Max {
		finish = "length"
	}
	var ids, entries []string
	for range n {
		ids = append(ids, fmt.Sprint(rng.IntN(100)))
		p := 0.05 + 0.9*rng.Float64()
		tops := ""
		for k := range r.Top {
			if k > 0 {
				tops += ","
			}
			tops += fmt.Sprintf(`{"token":"x","logprob":%v,"bytes":[120]}`, math.Log(p*math.Pow(1-p, float64(k))))
		}
		entries = append(entries, fmt.Sprintf(`{"token":"x\"\\","logprob":%v,"bytes":[120],"top_logprobs":[%s]}`, math.Log(p), tops))
	}
	return fmt.Sprintf(`{"index":%d,"message":{"role":"assistant","content":"trace %x \u00e9\n","reasoning":null},"logprobs":{"content":[%s]},"finish_reason":%q,"stop_reason":null,"token_ids":[%s]}`,
		i, sum[:4], strings.Join(entries, ","), finish, strings.Join(ids, ",")), n
}

// fleetOn makes a fleet over fakes with limits fit for tests.
func fleetOn(t *testing.T, change func(*Options), fakes ...*fake) *Fleet {
	t.Helper()
	o := Options{ProbeEvery: 5 * time.Millisecond, ProbeTimeout: 5 * time.Second, Quarantine: time.Millisecond, HangAfter: time.Hour}
	for _, f := range fakes {
		o.Servers = append(o.Servers, f.server.URL)
	}
	if change != nil {
		change(&o)
	}
	fleet, err := NewFleet(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Close(); err != nil {
			t.Error(err)
		}
	})
	return fleet
}

func offerOf(version int) rollout.Offer {
	return rollout.Offer{
		Policy:    rollout.Policy{Incarnation: 1, Version: version, Digest: fmt.Sprintf("d%d", version)},
		Transport: rollout.ByDirectory, Path: fmt.Sprintf("/weights/%d", version),
	}
}

func jobOf(id string, policy rollout.Policy) rollout.Job {
	return rollout.Job{
		ID: rollout.JobID(id), Policy: policy, Purpose: rollout.Train,
		Question: rollout.Question{ID: "q-" + id, Messages: []rollout.Message{
			{Role: "system", Parts: []rollout.Part{{Text: "You are a \"professional\".\n"}}},
			{Role: "user", Parts: []rollout.Part{{Text: "What is " + id + "?"}}},
		}},
		Sampling: rollout.Sampling{Traces: 3, Temperature: 1, TopP: 1, MaxTokens: 30, Seed: 4096},
	}
}

// freePort reserves an address on which nobody listens.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// real reads a recorded response of stock vLLM 0.25.1.
func real(t testing.TB, name string) (status int, body []byte) {
	t.Helper()
	data, err := os.ReadFile("testdata/real/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var recorded struct {
		Response struct {
			Status int
			Body   json.RawMessage
		}
	}
	if err := json.Unmarshal(data, &recorded); err != nil {
		t.Fatal(err)
	}
	body = recorded.Response.Body
	if string(body) == `""` {
		body = nil
	}
	return recorded.Response.Status, body
}

// requestID reads the id out of a request's body.
func requestID(body []byte) string {
	var r struct {
		ID string `json:"request_id"`
	}
	if json.Unmarshal(body, &r) != nil {
		return "unreadable"
	}
	return r.ID
}
