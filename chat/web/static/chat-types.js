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
 * @typedef {{code: string, detail: string, id?: string, retry_after?: number, text?: string,
 *   retrying: boolean}} Failure with the text of our message that it is about; not `retrying`: given up
 * @typedef {"connecting"|"connected"|"waiting"|"offline"|"signed-out"|"refused"|"closed"} StateName
 * @typedef {{name: StateName, until?: number, code?: number, reason?: string}} State
 *   `until`: when it tries again (ms since 1970); `code`, `reason`: how the last connection was closed
 * @typedef {{id: string, text: string, receiver_id?: number, sentAt: number}} Unsent sentAt 0: not under way
 *
 * @typedef {object} Options
 * @property {string | (() => string | Promise<string>)} [token] a function is called before each connection
 * @property {(welcome: Welcome) => void} [onWelcome] not `resumed`: forget the messages shown so far
 * @property {(messages: Message[]) => void} [onMessages] each message once, in the order of `seq`
 * @property {(seq: number) => void} [onRedacted]
 * @property {(ack: Ack) => void} [onAck] once for each message of ours that is stored
 * @property {(failure: Failure) => void} [onError]
 * @property {(state: State) => void} [onState]
 * @property {(direction: "in" | "out", text: string) => void} [onFrame] for debugging
 */
export {};
