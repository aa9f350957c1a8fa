// Package sim runs whole rollouts over the real fleet.Service and the readable
// store, in virtual time, with everything going wrong that may: messages are
// lost, doubled and late, devices die, firmware is bad, servers are killed
// between any two calls of the store or see it fail, clocks jump, operators pause,
// resume, abort, finish and revoke, devices come and change. After every change it
// holds what must never break, and when the faults are over, that everything ends,
// or is idle with nobody forgotten.
//
// One seed is one history, the same every time. No two goroutines of the servers
// ever run at once: each waits at a gate before its call of the store, and the
// driver lets them through one by one, in an order that the seed says. So the
// order of calls of two replicas is as much part of the history as the faults.
//
// The devices are a model of how the agent reports, and asks before it activates
// whether it may, and no more of it. Nothing
// here is about SQL, MQTT or files: those have their own tests.
package sim
