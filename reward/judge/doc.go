// Package judge asks a language model behind an OpenAI-compatible endpoint
// whether an open answer means the same as the gold answer. [New] gives a
// reward.PartFunc-shaped method, [Judge.Part], that plugs in as
// reward.Options.Judge or as an extra part.
//
// Time, concurrency, retries and memory are bounded; verdicts are cached by the
// content that was judged. A judge that fails, or whose reply cannot be read,
// gives an error, which the scorer turns into a missing score and never into 0.
// The package shows no image to the judge, trains nothing and trusts no reply
// beyond one number in [0, 1].
package judge
