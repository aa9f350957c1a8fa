// Package mqtt is the device's MQTT line to otad, directly or through a broker:
// jobs and shadow in the shape of AWS IoT, and presence (docs/device-protocol.md).
//
// The parties: the broker, named by the pinned CA; behind it otad, which answers
// requests on reply topics. Nothing depends on the session or on a message
// arriving: each request has a token and a deadline, a lost reply is a retry,
// and every (re)connect wakes the agent to ask again. What arrives is a hint or
// an answer to a question that was asked; anything else is dropped.
//
// It is not the outbox: order and repetition of reports are the agent's, and
// what may be installed is decided by signed metadata, not here.
package mqtt
