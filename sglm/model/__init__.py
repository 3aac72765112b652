"""The network: embedding, a stack of LSTM layers, a softmax; and the state that it carries."""
