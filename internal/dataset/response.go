package dataset

// Response is the target text of a reasoning record: the trace and the answer
// in the tags that the format reward asks for.
func Response(reason, answer string) string {
	return "<think>" + reason + "</think><answer>" + answer + "</answer>"
}
