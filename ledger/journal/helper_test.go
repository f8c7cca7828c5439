package journal_test

import "time"

// deadline bounds every wait for something that must come about.
const deadline = 30 * time.Second

func tick() <-chan time.Time { return time.After(200 * time.Microsecond) }
