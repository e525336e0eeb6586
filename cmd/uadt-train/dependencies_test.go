package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/blob"
)

func openStore(t *testing.T) *blob.Store {
	t.Helper()
	store, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func promptData() configs.Data { return configs.Defaults().Data }

// closedPort is a loopback address on which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // only its number is wanted
	return listener.Addr().String()
}

func TestPortInUse(t *testing.T) {
	l := lab(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // a test's own
	address := taken.Addr().String()
	invoke(t, "serve", "--model", l.path("model"), "--addr", address).expect(t, exitFailed, address, "in use")
	recipe, runs := writeRecipe(t, l.rlOnly)
	invoke(t, "--config", recipe, "--set", "log.prometheus="+address).expect(t, exitFailed, "log.prometheus", address)
	invoke(t, "--config", recipe, "--set", "bus.listen="+address).expect(t, exitFailed, address)
	requireNoCheckpoint(t, runs)
}

func TestUnreachableDependencies(t *testing.T) {
	l := lab(t)
	away := closedPort(t)
	for _, c := range []struct {
		name string
		args []string
		slow bool // the client's own patience is long
	}{
		{"fleet of a run", []string{"--config", "RECIPE", "--set", "rollout.servers=[http://" + away + "]"}, false},
		{"bus of a run", []string{"--config", "RECIPE", "--set", "bus.url=nats://" + away}, true},
		{"bus of a worker", []string{"worker", "--bus", "nats://" + away, "--run", "x", "--servers", "http://" + away}, true},
		{"server of infer", []string{"infer", "--servers", "http://" + away, "--question", "q"}, false},
		{"doctor's fleet", []string{"doctor", "--config", "RECIPE", "--set", "rollout.servers=[http://" + away + "]"}, false},
		{"doctor's bus", []string{"doctor", "--config", "RECIPE", "--set", "bus.url=nats://" + away}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.slow && testing.Short() {
				t.Skip("waits as long as the bus client does")
			}
			t.Parallel()
			recipe, runs := writeRecipe(t, l.rlOnly)
			args := append([]string{}, c.args...)
			for i, a := range args {
				if a == "RECIPE" {
					args[i] = recipe
				}
			}
			r := invoke(t, args...)
			r.expect(t, exitUnreachable)
			if !strings.Contains(r.stdout+r.stderr, away) {
				t.Errorf("the address %s is not named:\n%s%s", away, r.stdout, r.stderr)
			}
			requireNoCheckpoint(t, runs)
		})
	}
}

// garbageServer answers everything, with status 200 and nonsense.
func garbageServer(t *testing.T) (url string, asked *atomic.Int64) {
	t.Helper()
	asked = &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, "<html>{\"model\": garbage")
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

func TestServerThatAnswersGarbage(t *testing.T) {
	l := lab(t)
	url, asked := garbageServer(t)
	recipe, runs := writeRecipe(t, l.rlOnly)
	invoke(t, "--config", recipe, "--set", "rollout.servers=["+url+"]").
		expect(t, exitUnreachable, url, "the answer does not fit the request")
	requireNoCheckpoint(t, runs)
	invoke(t, "infer", "--servers", url, "--question", "q").expect(t, exitFailed, url)
	r := invoke(t, "doctor", "--config", recipe, "--set", "rollout.servers=["+url+"]")
	r.expect(t, exitUnreachable, "fleet")
	if !strings.Contains(r.stdout, url) || asked.Load() < 3 {
		t.Errorf("the server was asked %d times; the doctor said\n%s", asked.Load(), r.stdout)
	}
}

// TestWorkerInAnotherProcess runs the coordinator without a worker or server of
// its own; another process takes the jobs over the bus, and a third one serves.
func TestWorkerInAnotherProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("a whole run over three processes")
	}
	l := lab(t)
	ready := make(chan string, 1)
	server := start(t, nil, func(_ *process, line string) {
		if _, url, ok := strings.Cut(line, " as policy at "); ok {
			ready <- url
		}
	}, "serve", "--model", l.path("model"), "--addr", "127.0.0.1:0")
	var url string
	select {
	case url = <-ready:
	case <-server.done:
		t.Fatalf("the server ended: %s", server.wait(t).stderr)
	}
	recipe, runs := writeRecipe(t, func(runs string) string {
		return strings.Replace(l.rlOnly(runs), "timeout: 2s", "timeout: 60s", 1)
	})
	bus := closedPort(t)
	started := make(chan struct{})
	var once atomic.Bool
	run := start(t, nil, func(_ *process, line string) {
		if contains(line, "run started") && once.CompareAndSwap(false, true) {
			close(started)
		}
	}, "--config", recipe, "--set", "rollout.workers=0", "--set", "bus.listen="+bus)
	select {
	case <-started:
	case <-run.done:
		t.Fatalf("the run ended: %s", run.wait(t).stderr)
	}
	worker := start(t, nil, nil, "worker", "--config", recipe, "--bus", "nats://"+bus, "--servers", url)
	r := run.wait(t)
	r.expect(t, exitDone, "worker joined")
	if t.Failed() {
		worker.kill()
		t.Logf("worker:\n%s", worker.wait(t).stderr)
	}
	lines, err := readMetrics(filepath.Join(runs, "tiny"))
	if err != nil {
		t.Fatal(err)
	}
	trained := 0.0
	for _, line := range lines {
		n, _ := line.number("rollout/trained")
		trained += n
	}
	if trained != 4 {
		t.Errorf("%v groups were trained, want 4", trained)
	}
}
