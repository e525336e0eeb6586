package rollout

import "context"

// progressKey is the context key of WithProgress.
type progressKey struct{}

// WithProgress returns a context in which Progress calls mark. Whoever hands a
// job out uses it to tell a fleet that works from one that hangs.
func WithProgress(ctx context.Context, mark func()) context.Context {
	return context.WithValue(ctx, progressKey{}, mark)
}

// Progress says that work under ctx went forward: a piece of an answer came, a
// server that is busy with it was seen generating. Without WithProgress it
// does nothing. A fleet calls it from Sample; it must not be called merely
// because time has passed.
func Progress(ctx context.Context) {
	if mark, ok := ctx.Value(progressKey{}).(func()); ok {
		mark()
	}
}
