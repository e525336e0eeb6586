package vllm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
)

// fakeGroups stands for the network: groups by the port at which they meet.
var fakeGroups = struct {
	sync.Mutex
	byPort map[int]*fakeGroup
}{byPort: map[int]*fakeGroup{}}

// fakeGroup is a group of one trainer and one server. Both sides of it block
// until the other one comes, or until it is given up.
type fakeGroup struct {
	name   string
	world  int
	joined chan struct{} // closed when the server has come
	over   chan struct{} // closed when the trainer gives it up
	data   chan string   // the directory whose weights are sent
	once   sync.Once
	ended  sync.Once
}

func (g *fakeGroup) leave() { g.ended.Do(func() { close(g.over) }) }

// fakeTrainer answers as the trainer's endpoint does.
type fakeTrainer struct {
	t      *testing.T
	server *httptest.Server

	mu     sync.Mutex
	holds  map[rollout.Policy]string // directories of the policies that it can send
	groups map[string]*fakeGroup
	ready  map[string]rollout.Policy // prepared, by group
	routes []string
	joins  []map[string]any
	// hook may answer a request itself and then returns true.
	hook func(w http.ResponseWriter, r *http.Request) bool
}

const fakeToken = "a-token-of-a-trainer"

func newFakeTrainer(t *testing.T) *fakeTrainer {
	f := &fakeTrainer{t: t, holds: map[rollout.Policy]string{}, groups: map[string]*fakeGroup{}, ready: map[string]rollout.Policy{}}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	return f
}

// offer publishes version, with which directories of that version agree.
func (f *fakeTrainer) offer(version int) rollout.Offer {
	o := offerOf(version)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds[o.Policy] = o.Path
	return rollout.Offer{Policy: o.Policy, Transport: rollout.ByNCCL, NCCL: &rollout.NCCLOffer{URL: f.server.URL, Token: fakeToken}}
}

func (f *fakeTrainer) setHook(hook func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// forget drops all groups or all policies, as a restart or a later publish does.
func (f *fakeTrainer) forget(groups, policies bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if groups {
		clear(f.groups)
	}
	if policies {
		clear(f.holds)
	}
}

// called counts calls of a route.
func (f *fakeTrainer) called(route string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, r := range f.routes {
		if r == route {
			n++
		}
	}
	return n
}

type fakeAsk struct {
	Server  string
	Group   string
	Policy  rollout.Policy
	World   int `json:"world_size"`
	Seconds float64
}

func failWith(w http.ResponseWriter, status int, kind, message string) {
	refuse(w, status, fmt.Sprintf(`{"error":{"type":%q,"message":%q}}`, kind, message))
}

func (f *fakeTrainer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var ask fakeAsk
	var all map[string]any
	if err != nil || json.Unmarshal(body, &ask) != nil || json.Unmarshal(body, &all) != nil {
		f.t.Errorf("%s: body %q: %v", r.URL.Path, body, err)
	}
	if got := r.Header.Get("Authorization"); got != "Bearer "+fakeToken {
		f.t.Errorf("%s: authorization %q", r.URL.Path, got)
	}
	f.mu.Lock()
	f.routes = append(f.routes, r.URL.Path)
	hook, group, path := f.hook, f.groups[ask.Group], f.holds[ask.Policy]
	f.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	switch {
	case r.URL.Path == "/join" && path == "" || r.URL.Path == "/prepare" && path == "":
		failWith(w, 410, "PolicyGoneError", fmt.Sprintf("policy %s is not held", ask.Policy))
	case r.URL.Path == "/join":
		f.join(w, ask, all)
	case group == nil:
		failWith(w, 404, groupUnknown, "no group "+ask.Group)
	case r.URL.Path == "/prepare":
		f.prepare(r.Context(), w, group, ask.Policy)
	case r.URL.Path == "/send":
		f.send(r.Context(), w, group)
	case r.URL.Path == "/leave":
		group.leave()
		fmt.Fprint(w, "{}")
	default:
		f.t.Errorf("route %s", r.URL.Path)
	}
}

func (f *fakeTrainer) join(w http.ResponseWriter, ask fakeAsk, all map[string]any) {
	if ask.Seconds <= 0 || ask.World < 2 {
		f.t.Errorf("join %+v", ask)
	}
	g := &fakeGroup{world: ask.World, joined: make(chan struct{}), over: make(chan struct{}), data: make(chan string)}
	fakeGroups.Lock()
	port := 20000 + len(fakeGroups.byPort)
	fakeGroups.byPort[port] = g
	fakeGroups.Unlock()
	g.name = fmt.Sprint("g", port)
	f.mu.Lock()
	f.groups[g.name] = g
	f.joins = append(f.joins, all)
	f.mu.Unlock()
	fmt.Fprintf(w, `{"group":%q,"init_info":{"master_address":"127.0.0.1","master_port":%d,"rank_offset":1,"world_size":%d}}`, g.name, port, ask.World)
}

func (f *fakeTrainer) prepare(ctx context.Context, w http.ResponseWriter, g *fakeGroup, policy rollout.Policy) {
	select {
	case <-g.joined:
	case <-g.over:
		failWith(w, 504, "BroadcastTimeoutError", "it was given up")
		return
	case <-ctx.Done():
		return
	}
	f.mu.Lock()
	f.ready[g.name] = policy
	f.mu.Unlock()
	fmt.Fprint(w, `{"update_info":{"names":["a"],"dtype_names":["float32"],"shapes":[[1]],"packed":true}}`)
}

func (f *fakeTrainer) send(ctx context.Context, w http.ResponseWriter, g *fakeGroup) {
	f.mu.Lock()
	path := f.holds[f.ready[g.name]]
	delete(f.ready, g.name)
	f.mu.Unlock()
	if path == "" {
		failWith(w, 500, "BroadcastError", "nothing was prepared")
		return
	}
	select {
	case g.data <- path:
		fmt.Fprint(w, `{"seconds":0.1,"bytes":4}`)
	case <-g.over:
		failWith(w, 504, "BroadcastTimeoutError", "it was given up")
	case <-ctx.Done():
	}
}

// transfer plays the server's half; it says false to other routes.
func (f *fake) transfer(w http.ResponseWriter, r *http.Request, body []byte) bool {
	f.mu.Lock()
	paused, member := f.paused, f.member
	f.mu.Unlock()
	switch r.URL.Path {
	case "/get_world_size":
		fmt.Fprint(w, `{"world_size":1}`)
	case "/init_weight_transfer_engine":
		f.initTransfer(w, body)
	case "/start_weight_update", "/finish_weight_update":
		if !paused || member == nil {
			f.t.Errorf("%s: paused %v, in a group %v", r.URL.Path, paused, member != nil)
		}
		fmt.Fprint(w, "{}")
	case "/update_weights":
		var request struct {
			Info struct {
				Names []string
			} `json:"update_info"`
		}
		if err := json.Unmarshal(body, &request); err != nil || len(request.Info.Names) != 1 || member == nil {
			refuse(w, 500, "Internal Server Error")
			return true
		}
		select {
		case path := <-member.data:
			f.mu.Lock()
			f.path = path
			f.mu.Unlock()
			fmt.Fprint(w, "{}")
		case <-r.Context().Done(): // a collective hangs when the other side is gone
		}
	default:
		return false
	}
	return true
}

func (f *fake) initTransfer(w http.ResponseWriter, body []byte) {
	var request struct {
		Info struct {
			Port   int `json:"master_port"`
			Offset int `json:"rank_offset"`
			World  int `json:"world_size"`
		} `json:"init_info"`
	}
	err := json.Unmarshal(body, &request)
	fakeGroups.Lock()
	g := fakeGroups.byPort[request.Info.Port]
	fakeGroups.Unlock()
	if err != nil || g == nil || request.Info.Offset != 1 || request.Info.World != g.world {
		refuse(w, 500, "Internal Server Error")
		return
	}
	f.mu.Lock()
	f.member = g
	f.mu.Unlock()
	g.once.Do(func() { close(g.joined) })
	fmt.Fprint(w, "{}")
}
