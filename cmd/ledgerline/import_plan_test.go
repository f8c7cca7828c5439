package main

import (
	"strings"
	"testing"

	"ledgerline/ledger/sqlstore"
)

// The way back is promised for databases of New API's, not for one that Ledgerline made, whose passwords are argon2id.
func TestPlanPromisesTheWayBack(t *testing.T) {
	for state, back := range map[sqlstore.SurveyState]bool{
		sqlstore.StateEmpty: false, sqlstore.StateOwn: false, sqlstore.StateNewAPI: true, sqlstore.StateAdopted: true,
	} {
		var p plan
		p.Survey = &sqlstore.Survey{State: state}
		if says := strings.Contains(strings.Join(p.steps(), "\n"), "New API can be started again"); says != back {
			t.Errorf("%s: says %v, want %v: %q", state, says, back, p.steps())
		}
	}
	sealed := plan{Survey: &sqlstore.Survey{State: sqlstore.StateAdopted}, sealed: true}
	if says := strings.Join(sealed.steps(), "\n"); !strings.Contains(says, "New API cannot be started again") {
		t.Errorf("sealed: %q", says)
	}
}
