//go:build browser

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// browser is a headless Chromium, driven by its own protocol over two pipes.
type browser struct {
	t       *testing.T
	out     *os.File
	in      *bufio.Reader
	reads   *os.File
	session string
	calls   int
	events  []browserEvent
}

// browserEvent is something that the page did.
type browserEvent struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

// browserPatience bounds every answer of the browser.
const browserPatience = 2 * time.Minute

// startBrowser starts the Chromium that UADT_BROWSER names, with one empty tab.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	path := os.Getenv("UADT_BROWSER")
	if path == "" {
		t.Fatal("UADT_BROWSER names no Chromium; scripts/test-browser.sh finds one")
	}
	theirIn, ourOut := browserPipe(t)
	ourIn, theirOut := browserPipe(t)
	// Without a sandbox: it runs as root in CI, and the page is our own.
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // file descriptors 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, out: ourOut, in: bufio.NewReader(ourIn), reads: ourIn}
	t.Cleanup(func() { b.close(cmd) })
	if err := errors.Join(theirIn.Close(), theirOut.Close()); err != nil {
		t.Fatal(err)
	}
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Network", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	return b
}

// close ends the browser in order, so that its profile can be removed, and kills
// it if that takes too long.
func (b *browser) close(cmd *exec.Cmd) {
	late := time.AfterFunc(browserPatience, func() { _ = cmd.Process.Kill() }) // Wait reports it
	defer late.Stop()
	_, asked := b.out.WriteString(`{"id":0,"method":"Browser.close"}` + "\x00")
	_, left := io.Copy(io.Discard, b.in) // until the last of its processes has let go of the pipe
	if err := errors.Join(asked, left, cmd.Wait(), b.out.Close(), b.reads.Close()); err != nil {
		b.t.Errorf("ending the browser: %v", err)
	}
}

func browserPipe(t *testing.T) (read, write *os.File) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return read, write
}

// call sends one command and waits for its result; events that come before it
// are kept.
func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	b.calls++
	command := map[string]any{"id": b.calls, "method": method}
	if params != nil {
		command["params"] = params
	}
	if b.session != "" {
		command["sessionId"] = b.session
	}
	data, err := json.Marshal(command)
	if err == nil {
		_, err = b.out.Write(append(data, 0))
	}
	if err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	for {
		var answer struct {
			browserEvent
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		b.next(method, &answer)
		switch {
		case answer.ID != b.calls:
			b.events = append(b.events, answer.browserEvent)
		case answer.Error != nil:
			b.t.Fatalf("%s: %s", method, answer.Error.Message)
		case result != nil:
			if err := json.Unmarshal(answer.Result, result); err != nil {
				b.t.Fatalf("%s: %v in %s", method, err, answer.Result)
			}
			return
		default:
			return
		}
	}
}

// next reads one message.
func (b *browser) next(what string, into any) {
	b.t.Helper()
	if err := b.reads.SetReadDeadline(time.Now().Add(browserPatience)); err != nil {
		b.t.Fatal(err)
	}
	message, err := b.in.ReadBytes(0)
	if err == nil {
		err = json.Unmarshal(message[:len(message)-1], into)
	}
	if err != nil {
		b.t.Fatalf("waiting for %s: %v", what, err)
	}
}

// open loads a page and waits until it and its images are there.
func (b *browser) open(url string) {
	b.t.Helper()
	before := len(b.events)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	for {
		for _, e := range b.events[before:] {
			if e.Method == "Page.loadEventFired" {
				return
			}
		}
		var e browserEvent
		b.next("the page to load", &e)
		b.events = append(b.events, e)
	}
}

// eval evaluates an expression of the page into a value.
func (b *browser) eval(expression string, into any) {
	b.t.Helper()
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Exception struct{ Description string }
		}
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &answer)
	if answer.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, answer.ExceptionDetails.Exception.Description)
	}
	if err := json.Unmarshal(answer.Result.Value, into); err != nil {
		b.t.Fatalf("%s: %v in %s", expression, err, answer.Result.Value)
	}
}

// press strikes a key.
func (b *browser) press(key, text string, code int) {
	b.t.Helper()
	for _, kind := range []string{"keyDown", "keyUp"} {
		params := map[string]any{"type": kind, "key": key, "windowsVirtualKeyCode": code}
		if kind == "keyDown" && text != "" {
			params["text"] = text
		}
		b.call("Input.dispatchKeyEvent", params, nil)
	}
}

// width makes the window as wide as a device.
func (b *browser) width(pixels int) {
	b.t.Helper()
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 600}, nil)
}

// picture keeps a picture of the whole page as name.png among the artifacts of
// the test (go test -artifacts).
func (b *browser) picture(name string) {
	b.t.Helper()
	var shot struct{ Data []byte }
	b.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
	if err := os.WriteFile(fmt.Sprintf("%s/%s.png", b.t.ArtifactDir(), name), shot.Data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}
