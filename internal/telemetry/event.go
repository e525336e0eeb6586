// Package telemetry carries what happens in a run to those who watch it: typed
// events in, and out of them log lines, TensorBoard files, Prometheus metrics
// and progress bars. Metric names are those of docs/metrics.md everywhere.
//
// It decides nothing, keeps nothing that a resume would need, and never blocks
// the ring: a sink that cannot write says so once and goes quiet.
// metrics.jsonl belongs to the run directory, which must cut it on resume.
package telemetry

import "time"

// Event is something that happened. The concrete types below are all there are.
type Event interface {
	event()
}

// Sink receives events, in order, from one goroutine at a time per emitter;
// implementations lock for themselves.
type Sink interface {
	Emit(Event)
}

// Metrics are the numbers of one step by name, such as "uadt/tau". A ratio
// whose denominator was 0 is absent, never 0.
type Metrics map[string]float64

// RunStarted opens a run or resumes one.
type RunStarted struct {
	Run         string
	Incarnation uint64
	Resumed     bool
	Step        int // global step it starts after
	Stages      []StagePlan
}

// StagePlan is one stage of the recipe as progress displays need it.
type StagePlan struct {
	Name  string
	Kind  string // align, sft or rl
	Steps int
}

// StageStarted opens a stage, at Step of its Steps.
type StageStarted struct {
	Stage StagePlan
	Step  int // steps of the stage already done
}

// RolloutProgress counts the groups of the step that is being sampled.
type RolloutProgress struct {
	Stage              string
	Step               int // step of the stage
	Done, Dropped, All int // groups
}

// GroupDropped says that a group will not be trained, and why.
type GroupDropped struct {
	Job    string
	Reason string
	Err    error // may be nil
}

// StepDone closes a step. Metrics hold all numbers of the step.
type StepDone struct {
	Stage   string
	Step    int // step of the stage, from 1
	Global  int // step of the run, from 1
	Metrics Metrics
	Time    time.Time
}

// Evaluated reports an evaluation beside training.
type Evaluated struct {
	Stage   string
	Global  int
	Metrics Metrics
}

// Alarm is a named condition that a researcher must see, such as
// all_zero_reward. It never stops a run by itself.
type Alarm struct {
	Name    string
	Step    int
	Message string
}

// PolicyAdopted says that new weights are live.
type PolicyAdopted struct {
	Policy  string
	Servers int
	Failed  int
	Seconds float64
}

// CheckpointSaved says that a checkpoint is durable.
type CheckpointSaved struct {
	Step    int // global step
	Path    string
	Seconds float64
}

// RunEnded closes a run.
type RunEnded struct {
	Run      string
	Finished bool   // false: stopped, and can be resumed
	Digest   string // of the final weights
	Step     int    // global step reached
}

func (RunStarted) event()      {}
func (StageStarted) event()    {}
func (RolloutProgress) event() {}
func (GroupDropped) event()    {}
func (StepDone) event()        {}
func (Evaluated) event()       {}
func (Alarm) event()           {}
func (PolicyAdopted) event()   {}
func (CheckpointSaved) event() {}
func (RunEnded) event()        {}

// Tee is a sink that hands every event to each of sinks, in order.
func Tee(sinks ...Sink) Sink { return tee(sinks) }

type tee []Sink

// Emit implements Sink.
func (t tee) Emit(e Event) {
	for _, s := range t {
		s.Emit(e)
	}
}

// Discard is a sink that drops every event.
func Discard() Sink { return tee(nil) }
