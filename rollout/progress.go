package rollout

import "context"

// progressKey is the context key of WithProgress.
type progressKey struct{}

// WithProgress returns a context in which Progress calls mark. Whoever hands a
// job out uses it to tell a fleet that works from one that hangs. mark is called
// from any goroutine, up to several times a second, perhaps under a lock: it
// must neither block nor call the fleet.
func WithProgress(ctx context.Context, mark func()) context.Context {
	return context.WithValue(ctx, progressKey{}, mark)
}

// Progress says that work under ctx went forward: a piece of an answer came, a
// server that is busy with it was seen generating. Without WithProgress it
// does nothing. It must not be called merely because time has passed.
//
// A fleet whose answers come in one piece (rollout/vllm does not stream: vLLM
// returns token ids and log-probabilities whole) can only see the server that
// has the job: when that generated since the last look, all of its jobs are
// taken to have gone forward.
func Progress(ctx context.Context) {
	if mark, ok := ctx.Value(progressKey{}).(func()); ok {
		mark()
	}
}
