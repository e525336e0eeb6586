package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// fileLimit is the variable with the most bytes that a file of the child may
// have.
const fileLimit = "UADT_TEST_FILE_LIMIT"

// limitFiles makes writes beyond text bytes of a file fail with EFBIG.
func limitFiles(text string) {
	if text == "" {
		return
	}
	bytes, err := strconv.ParseUint(text, 10, 63)
	if err == nil {
		err = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: bytes})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "limit of files:", err)
		os.Exit(125)
	}
}

// process is the program in a process of its own.
type process struct {
	command *exec.Cmd
	done    chan struct{} // closed when stderr has ended
	mu      sync.Mutex
	stderr  bytes.Buffer
	stdout  bytes.Buffer
}

// start runs a command line in a child. seen is called with every line of its
// stderr; nil is allowed.
func start(t *testing.T, env []string, seen func(p *process, line string), args ...string) *process {
	t.Helper()
	p := &process{command: exec.Command(os.Args[0], args...), done: make(chan struct{})}
	p.command.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	p.command.Stdout = &p.stdout
	pipe, err := p.command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		<-p.done
	})
	go func() {
		defer close(p.done)
		p.read(pipe, seen)
	}()
	return p
}

func (p *process) read(pipe io.Reader, seen func(*process, string)) {
	scanner := bufio.NewScanner(pipe)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		p.mu.Lock()
		p.stderr.WriteString(scanner.Text() + "\n")
		p.mu.Unlock()
		if seen != nil {
			seen(p, scanner.Text())
		}
	}
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	_ = p.command.Process.Kill() // it may have ended by itself
}

// wait returns how the process ended; code is -1 for one that was killed.
func (p *process) wait(t *testing.T) result {
	t.Helper()
	<-p.done
	err := p.command.Wait()
	if p.command.ProcessState == nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return result{code: p.command.ProcessState.ExitCode(), stdout: p.stdout.String(), stderr: p.stderr.String()}
}

// contains says whether line has every one of words.
func contains(line string, words ...string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return true
}

// watcher is a stderr that calls seen with every line written to it.
type watcher struct {
	mu   sync.Mutex
	all  bytes.Buffer
	seen func(line string)
}

// Write implements io.Writer; loggers write whole lines.
func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all.Write(p)
	w.seen(string(p))
	return len(p), nil
}

func (w *watcher) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}
