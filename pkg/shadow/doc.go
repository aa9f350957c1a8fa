// Package shadow holds the rules of device shadows: one JSON document per
// device and name, with a desired section written by operators and a reported
// section written by the device.
//
// It follows the AWS IoT Device Shadow service: merge patches in which null
// removes a key, a delta that holds every desired value the device has not
// reported, a version that rises by one with each accepted update and survives
// deletion, a timestamp for every leaf, and the payloads of the accepted,
// rejected, delta and documents topics.
//
// The package is pure: it stores nothing, publishes nothing and reads no clock.
// Every function leaves its arguments unchanged, and objects it returns may
// share members with them; treat all of them as immutable.
package shadow
