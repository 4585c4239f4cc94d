// @ts-check
/**
 * The types of chat-client.js: what its callbacks are told and its methods return. Nothing of it runs.
 * Frames are those of docs/protocol.md.
 *
 * @typedef {{id: number, name: string}} User
 * @typedef {{seq: number, id: string, sender: User, receiver: User | null, text: string, sent_at: string,
 *   redacted?: boolean}} Message
 * @typedef {{room: string, epoch: string, first_seq: number, last_seq: number, resumed: boolean, user: User,
 *   expires_at: string | null, limits: {text: number, frame: number}, server_time: string}} Welcome
 * @typedef {{id: string, room: string, messages: Message[], more: boolean}} History oldest first
 * @typedef {{id: string, seq: number, sent_at: string, duplicate: boolean}} Ack
 * @typedef {{code: string, detail: string, id?: string, retry_after?: number}} Refusal what the server says
 * @typedef {Refusal & {text?: string, retrying: boolean}} Failure with the text of our message that it is about; not
 *   `retrying`: given up. Two codes are the client's own. `other_user`: it waited, and somebody else is signed in now.
 *   `no_token`: the function `token` failed while connected, and is called again.
 * @typedef {"connecting"|"connected"|"waiting"|"offline"|"signed-out"|"refused"|"closed"} StateName
 * @typedef {{name: StateName, until?: number, code?: number, reason?: string}} State
 *   `until`: when it tries again (ms since 1970); `code`, `reason`: how the last connection was closed
 * @typedef {{id: string, text: string, receiver_id?: number}} Unsent
 * @typedef {{count: number, users: User[]}} Picture of who is here, sorted by name: all while `count` says so, else some
 * @typedef {{count: number, users?: User[], joined?: User[], left?: User[]}} Presence a picture, or what changed
 * @typedef {{user: User, seq: number}} Mark this user has read up to here
 *
 * @typedef {object} Callbacks
 * @property {(welcome: Welcome) => void} [onWelcome] not `resumed`: forget the messages shown so far
 * @property {(messages: Message[]) => void} [onMessages] each message once, in the order of `seq`
 * @property {(seq: number) => void} [onRedacted]
 * @property {(ack: Ack) => void} [onAck] once for each message of ours that is stored
 * @property {(failure: Failure) => void} [onError]
 * @property {(state: State) => void} [onState]
 * @property {(picture: Picture) => void} [onPresence] the whole picture, with each change
 * @property {(user: User) => void} [onTyping] show it for 5 s
 * @property {(mark: Mark) => void} [onRead] ourselves on another device, or the other one of a direct room
 * @property {(direction: "in" | "out", text: string) => void} [onFrame] for debugging
 *
 * @typedef {string | (() => string | Promise<string>)} Token a function is called before each connection, and again
 *   before the token ends
 * @typedef {object} Identity
 * @property {Token} [token]
 * @property {{id: number}} [user] who we are, where that is known before the first welcome: then what this user had
 *   waiting before a reload is in `waiting` at once, and nobody else's
 *
 * @typedef {Callbacks & Identity} Options
 */
export {};
