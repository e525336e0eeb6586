package remote

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
)

// serve takes one job after the other until soft ends.
func (w *Worker) serve(soft, hard context.Context, kill context.CancelCauseFunc) {
	for {
		if err := w.ready(soft); err != nil {
			return
		}
		task, err := w.jobs.Next(soft)
		if err != nil {
			if soft.Err() == nil {
				kill(fmt.Errorf("%w: %w", errBus, err))
			}
			return
		}
		if !w.begin(task.Key) {
			// It came back because it makes no progress here: let another worker,
			// if there is one, have it.
			w.settle(task, "return", task.Return(giveBack))
			continue
		}
		w.handle(hard, task)
		w.end(task.Key)
	}
}

// begin enters a task among those in hand, unless it is there already.
func (w *Worker) begin(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.inHand[key] {
		return false
	}
	w.inHand[key] = true
	return true
}

// end takes a task out of those in hand.
func (w *Worker) end(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.inHand, key)
}

// ready waits until the servers hold what was offered last: a worker without
// weights takes no job.
func (w *Worker) ready(ctx context.Context) error {
	return w.until(ctx, func(s workerView) bool {
		return s.offer != nil && s.live != nil && *s.live == s.offer.Policy
	})
}

// handle brings one task to its end: answered, dropped, or given back.
func (w *Worker) handle(hard context.Context, task *bus.Task) {
	progress, release := task.Hold(w.options.Stall)
	defer release()
	job, err := decodeJob(task.Message)
	if err != nil {
		job.ID = rollout.JobID(task.Key)
		w.finish(hard, task, w.dropped(job.ID, rollout.ReasonGarbage, err))
		return
	}
	answer, err := w.sample(hard, progress, task, job)
	switch {
	case err == nil:
		w.finish(hard, task, answer)
	case errors.Is(err, ErrSuperseded):
		w.settle(task, "drop", task.Drop(err.Error()))
	case errors.Is(err, errNotYet) || hard.Err() != nil:
		delay := giveBack
		if hard.Err() != nil {
			delay = 0 // another worker may begin at once
		}
		w.settle(task, "return", task.Return(delay))
	default:
		w.failure(hard, task, job, err)
	}
}

// errNotYet says that the job's policy is not live here yet.
var errNotYet = errors.New("policy is not live yet")

// sample waits for the job's policy and samples it. The answer is a message
// for the bus: a group, or why there is none.
func (w *Worker) sample(hard context.Context, progress func(), task *bus.Task, job rollout.Job) (bus.Message, error) {
	reign, err := w.await(hard, task, job)
	var dropped *rollout.Dropped
	if errors.As(err, &dropped) {
		return w.dropped(job.ID, dropped.Reason, dropped.Err), nil
	}
	if err != nil {
		return bus.Message{}, err
	}
	ctx, cancel := context.WithCancelCause(rollout.WithProgress(hard, progress))
	defer cancel(nil)
	defer context.AfterFunc(reign, func() { cancel(context.Cause(reign)) })()
	if !job.Deadline.IsZero() {
		var end context.CancelFunc
		ctx, end = context.WithDeadline(ctx, job.Deadline)
		defer end()
	}
	group, err := w.options.Fleet.Sample(ctx, job)
	if reign.Err() != nil {
		return bus.Message{}, context.Cause(reign)
	}
	if err == nil {
		err = group.Check(job)
	}
	if errors.As(err, &dropped) {
		return w.dropped(job.ID, dropped.Reason, dropped.Err), nil
	}
	if err != nil {
		return bus.Message{}, err
	}
	var images []string
	for _, image := range job.Question.Images() {
		images = append(images, image.Digest)
	}
	frame, err := EncodeGroup(group, Origin{Run: w.options.Run, Tokenizer: w.options.Tokenizer, Images: images})
	if err != nil {
		return w.dropped(job.ID, rollout.ReasonGarbage, err), nil
	}
	return bus.Message{Schema: SchemaGroup, Data: frame}, nil
}

// await waits until the job's policy is live, and returns the reign of the
// coordinator that asks.
func (w *Worker) await(ctx context.Context, task *bus.Task, job rollout.Job) (context.Context, error) {
	timer := time.NewTimer(parkFor)
	defer timer.Stop()
	for {
		s, changed := w.view()
		switch {
		case task.Incarnation < s.incarnation:
			return nil, ErrSuperseded
		case !job.Deadline.IsZero() && time.Now().After(job.Deadline):
			return nil, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonDeadline, Err: errors.New("deadline passed on the queue")}
		case task.Incarnation > s.incarnation || s.live == nil || s.offer == nil || s.live.Older(job.Policy):
			// its time may come
		case *s.live == job.Policy && s.offer.Policy == job.Policy:
			return s.reign, nil
		case job.Policy.Older(s.offer.Policy) || *s.live != job.Policy:
			return nil, &rollout.Dropped{Job: job.ID, Reason: rollout.ReasonStale,
				Err: fmt.Errorf("policy %s is offered, job wants %s", s.offer.Policy, job.Policy)}
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, errNotYet
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// failure gives a job back that the fleet failed without dropping it, or drops
// it when that has happened too often.
func (w *Worker) failure(hard context.Context, task *bus.Task, job rollout.Job, err error) {
	if !job.Deadline.IsZero() && time.Now().After(job.Deadline) {
		w.finish(hard, task, w.dropped(job.ID, rollout.ReasonDeadline, err))
		return
	}
	w.mu.Lock()
	w.failed[job.ID]++
	times := w.failed[job.ID]
	if times >= w.options.Failures {
		delete(w.failed, job.ID)
	}
	w.mu.Unlock()
	w.options.Log.Warn("sampling failed", "job", job.ID, "times", times, "error", err)
	if times >= w.options.Failures {
		w.finish(hard, task, w.dropped(job.ID, rollout.ReasonUnavailable, fmt.Errorf("failed %d times: %w", times, err)))
		return
	}
	w.settle(task, "return", task.Return(giveBack))
}

// dropped renders the answer that there will be no group.
func (w *Worker) dropped(id rollout.JobID, reason rollout.Reason, cause error) bus.Message {
	text := ""
	if cause != nil {
		text = cause.Error()
	}
	// Strings and an int cannot fail to encode.
	message, _ := encodeControl(SchemaDropped, droppedMessage{Version: controlVersion, Job: id, Reason: reason, Error: text})
	return message
}

// finish publishes the answer create-only, waits for its confirmation, and
// then takes the job off the queue, in this order: a worker that dies in
// between leaves a job that is answered already, which its next taker finds
// out when it publishes.
func (w *Worker) finish(hard context.Context, task *bus.Task, answer bus.Message) {
	ctx, cancel := context.WithTimeout(hard, publishFor)
	defer cancel()
	scope := bus.Scope{Run: w.options.Run, Incarnation: task.Incarnation}
	created, err := w.options.Conn.Log(scope, bus.Traces).Create(ctx, task.Key, answer)
	if err != nil {
		w.options.Log.Error("answer not published", "job", task.Key, "error", err)
		w.settle(task, "return", task.Return(giveBack))
		return
	}
	if !created {
		w.options.Log.Info("job was answered by another worker", "job", task.Key)
	}
	w.mu.Lock()
	delete(w.failed, rollout.JobID(task.Key))
	w.mu.Unlock()
	w.settle(task, "finish", task.Done(ctx))
}

// settle notes an acknowledgement that failed: the job will be handed out
// again, which costs time only.
func (w *Worker) settle(task *bus.Task, what string, err error) {
	if err != nil {
		w.options.Log.Warn("job not settled on the bus", "job", task.Key, "action", what, "error", err)
	}
}
