package audit

// VerifyAt and ReplayAt are Verify and Replay at another time.
var (
	VerifyAt = verifyAt
	ReplayAt = replayAt
)
