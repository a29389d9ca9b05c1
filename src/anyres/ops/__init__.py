"""Operations on tensors, each with a plain reference twin in the tests."""
